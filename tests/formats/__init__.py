# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats that cross a border of trust: what is read back, and what is refused."""
