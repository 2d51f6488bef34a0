# SPDX-License-Identifier: GPL-2.0-or-later
"""The silicon: each instruction, guests of a few instructions, and an independent model of the RMP."""
