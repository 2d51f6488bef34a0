# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock firmware of edk2's OVMF: what a launch must know of its file, and where to get one."""
