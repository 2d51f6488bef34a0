# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests. Rooms mirror the source's; `e2e` boots guests; what several rooms need is beside this file."""
