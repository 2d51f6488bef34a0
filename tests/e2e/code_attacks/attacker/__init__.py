# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel module that attacks the kernel's code, for tests: it is admitted by its hash."""
