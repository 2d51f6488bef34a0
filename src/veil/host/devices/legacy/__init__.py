# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices of the PC that Linux expects."""
