# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs that were fetched: verified, analysed, exported; and everything that a relay can do to them."""
