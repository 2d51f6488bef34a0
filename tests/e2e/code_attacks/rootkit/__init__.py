# SPDX-License-Identifier: GPL-2.0-or-later
"""A rootkit as public ones are: it hides files by hooking getdents64, in the way that a parameter names."""
