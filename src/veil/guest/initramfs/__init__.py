# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs and the programs in it."""
