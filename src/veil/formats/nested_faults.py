# SPDX-License-Identifier: GPL-2.0-or-later
"""What a nested page fault tells the host and, by the VMSA, VeilMon."""

from __future__ import annotations

import enum

from veil.formats.permissions import Permission

__all__ = ["NestedFault", "needed_permission"]


class NestedFault(enum.IntFlag):
    """EXITINFO1 of a nested page fault (24593, 15.25.6 and 15.36.10)."""

    PRESENT = 1 << 0
    WRITE = 1 << 1
    USER = 1 << 2
    FETCH = 1 << 4
    RMP = 1 << 31
    """The RMP's check failed; the bits from ENC on say more."""
    FINAL = 1 << 32
    """The access itself, not one of the page walk."""
    TABLE = 1 << 33
    """The walk of the guest's page tables."""
    ENC = 1 << 34
    """The access was to private memory."""
    SIZEM = 1 << 35
    """Its page and the RMP's entry have different sizes."""
    VMPL = 1 << 36
    """The level has no permission."""


def needed_permission(info: int, cpl: int) -> Permission:
    """What the access needs of which EXITINFO1 is `info`."""
    if info & NestedFault.WRITE:
        return Permission.W
    if info & NestedFault.FETCH:
        return Permission.UX if cpl == 3 else Permission.SX
    return Permission.R
