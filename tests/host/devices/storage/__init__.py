# SPDX-License-Identifier: GPL-2.0-or-later
"""Images and what is written over them."""
