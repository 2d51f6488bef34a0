# SPDX-License-Identifier: GPL-2.0-or-later
"""What the RMP lets a level do with a page."""

from __future__ import annotations

import enum

__all__ = ["Permission"]


class Permission(enum.IntFlag):
    """What a VMPL may do with a page; the bits of RMPADJUST's permission mask."""

    NONE = 0
    R = 1
    W = 2
    UX = 4
    SX = 8
    RW = 3
    ALL = 15
