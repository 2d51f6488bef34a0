# SPDX-License-Identifier: GPL-2.0-or-later
"""An entry in long mode's page tables (APM volume 2, 5.4). The C-bit is the board's (`board.py`)."""

from __future__ import annotations

from veil.formats.board import C_BIT
from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["ACCESSED", "ADDRESS", "DIRTY", "ENTRIES", "LARGE", "NO_EXECUTE", "PRESENT", "USER", "WRITABLE"]

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
#: The processor sets it when it uses the entry; and this one when it writes to the page.
ACCESSED = 1 << 5
DIRTY = 1 << 6
#: A page of 2 MiB or 1 GiB, in place of a table.
LARGE = 1 << 7
NO_EXECUTE = 1 << 63
#: where the page or the next table is, with the C-bit taken out
ADDRESS = C_BIT - PAGE_SIZE

#: in a table
ENTRIES = 512
