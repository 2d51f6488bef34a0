# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules: who vouches for a file, and what its memory must be."""
