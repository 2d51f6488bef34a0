# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code from GNU as, for guests of a few instructions."""

from __future__ import annotations

from veil.bare_metal import assemble

__all__ = ["assemble"]
