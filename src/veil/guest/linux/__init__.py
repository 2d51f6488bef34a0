# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux kernel: where it comes from, and how it is laid out in guest memory."""
