# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio devices over PCI: the console and disks."""
