# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI bus: functions, how their configuration spaces are reached, and the chipset's own functions."""
