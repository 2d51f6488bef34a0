# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on the integrity of the kernel's code, by the kernel, its modules and the host: docs/kci.md has the table."""
