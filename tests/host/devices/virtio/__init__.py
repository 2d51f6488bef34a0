# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio, with drivers that do not keep to it."""
