# SPDX-License-Identifier: GPL-2.0-or-later
"""The face, without a guest: configurations, snapshots' sections, what errors say."""
