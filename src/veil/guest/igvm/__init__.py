# SPDX-License-Identifier: GPL-2.0-or-later
"""IGVM files, which have all that a guest begins with."""
