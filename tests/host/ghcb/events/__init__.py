# SPDX-License-Identifier: GPL-2.0-or-later
"""NAE events, one file for each family."""
