# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures: Veil against QEMU, with and without the monitor, and in microseconds (`make bench`)."""
