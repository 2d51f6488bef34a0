# SPDX-License-Identifier: GPL-2.0-or-later
"""What firmware asks the board for, as QEMU's boards offer it."""
