# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices, each against a driver that may be hostile."""
