# SPDX-License-Identifier: GPL-2.0-or-later
"""The arithmetic of the figures."""
