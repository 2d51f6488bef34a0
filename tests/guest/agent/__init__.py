# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent as a process of this computer, and its protocol."""
