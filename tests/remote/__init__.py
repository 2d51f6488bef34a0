# SPDX-License-Identifier: GPL-2.0-or-later
"""The remote user, with nobody at the other end but the tests."""
