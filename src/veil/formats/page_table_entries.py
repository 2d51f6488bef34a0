# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits of an entry in long mode's page tables (APM volume 2, 5.4). The C-bit is the board's (`board.py`)."""

from __future__ import annotations

__all__ = ["ACCESSED", "DIRTY", "LARGE", "NO_EXECUTE", "PRESENT", "USER", "WRITABLE"]

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
#: The processor sets it when it uses the entry; and this one when it writes to the page.
ACCESSED = 1 << 5
DIRTY = 1 << 6
#: A page of 2 MiB or 1 GiB, in place of a table.
LARGE = 1 << 7
NO_EXECUTE = 1 << 63
