# SPDX-License-Identifier: GPL-2.0-or-later
"""A real VeilMon on the machine; tests play the kernel and the host around it, by the rules or not."""
