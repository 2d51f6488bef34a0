# SPDX-License-Identifier: GPL-2.0-or-later
"""The walk of a processor through an enclave's page tables."""

from __future__ import annotations

import struct
from typing import Protocol

from veil.formats.board import C_BIT
from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["NX", "US", "P", "W", "walk"]

NX, US, W, P = 1 << 63, 4, 2, 1


class Memory(Protocol):
    """Guest memory, for whoever may read it."""

    def read(self, gpa: int, length: int, /) -> bytes: ...


def walk(memory: Memory, root: int, va: int) -> tuple[int, int]:
    """(bits that hold on the way, page), as the processor finds them; (0, 0) without a translation."""
    table, held = root, US | W | P
    denied = 0
    for level in (39, 30, 21, 12):
        (entry,) = struct.unpack("<Q", memory.read(table + (va >> level & 511) * 8, 8))
        if not entry & P:
            return 0, 0
        assert entry & C_BIT, "memory that the host sees"
        held &= entry
        denied |= entry & NX
        table = entry & (C_BIT - PAGE_SIZE)
    return held & (US | W | P) | denied, table
