# SPDX-License-Identifier: GPL-2.0-or-later
"""The remote user's end of the secure channel."""
