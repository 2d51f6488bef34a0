# SPDX-License-Identifier: GPL-2.0-or-later
"""A stock kernel, booted: what users do with it, and what attackers do. Most guests are copies of one snapshot."""
