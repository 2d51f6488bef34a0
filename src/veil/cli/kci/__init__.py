# SPDX-License-Identifier: GPL-2.0-or-later
"""veil kci: the state of the kernel's code."""
