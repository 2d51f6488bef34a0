# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports and certificates: good ones, changed ones, and everything that is none."""
