# SPDX-License-Identifier: GPL-2.0-or-later
"""The services without a guest: tests play VeilMon, the kernel and users."""
