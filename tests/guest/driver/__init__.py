# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver: that it builds, and that it says what `veil.formats` says."""
