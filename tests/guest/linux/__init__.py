# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels: read, placed in memory, and booted as far as their first instructions."""
