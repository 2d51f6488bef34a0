# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtio console over PCI."""
