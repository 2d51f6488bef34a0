# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI: the kernel runs no supervisor code but verified code."""
