# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI bus, its functions, the chipset."""
