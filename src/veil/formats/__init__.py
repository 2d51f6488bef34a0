# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats that cross a border of trust: who writes them and who reads them share these layouts and nothing else.

Modules know only each other and the standard library, so that the measured monitor and the remote user's verifier can
both stand on them.
"""
