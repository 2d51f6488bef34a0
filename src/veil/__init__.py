# SPDX-License-Identifier: GPL-2.0-or-later
"""Protected services for confidential virtual machines, and the machine they run on."""
