# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's end of the secure channel."""
