# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's virtual memory, as its own page tables have it (24593, 5.3, "Long-Mode Page Translation").

Every access, those of the walk too, is made with VMPL 3's rights: whatever the tables say, nothing is read or written
that the kernel could not read or write itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.board import C_BIT
from veil.formats.domains import KERNEL_VMPL
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.page_table_entries import ADDRESS, ENTRIES, LARGE, PRESENT
from veil.formats.registers import Cr0, Cr4, Efer
from veil.snp.errors import RmpViolation
from veil.snp.layouts import Vmsa
from veil.snp.rmp import Permission

if TYPE_CHECKING:
    from veil.snp.view import View

__all__ = ["KernelMemory", "NotMapped"]

#: the address bits below each level's index
_LEVELS = (39, 30, 21, 12)


class NotMapped(Exception):
    """There is no private memory at this address that the kernel could reach; one line why."""


class KernelMemory:
    """What a context of VMPL 3 finds at its virtual addresses."""

    def __init__(self, view: View, vmsa: Vmsa) -> None:
        self._view = view.lower(KERNEL_VMPL)
        self._root = vmsa.cr3 & ADDRESS
        if not vmsa.efer & Efer.LMA or not vmsa.cr0 & Cr0.PG or vmsa.cr4 & Cr4.LA57:
            raise NotMapped("the context does not use page tables of four levels")

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a virtual address; raises NotMapped."""
        parts = []
        try:
            for gpa, size in self._pieces(address, length):
                parts.append(self._view.read(gpa, size))
        except RmpViolation as violation:
            raise NotMapped(f"the kernel cannot read at {address:#x}: {violation}") from violation
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes there: all, or none; raises NotMapped."""
        try:
            pieces = self._pieces(address, len(data))
            for gpa, size in pieces:
                # Before a byte is written: a piece out of the kernel's reach must not leave half of it.
                self._view.check(gpa, size, Permission.RW)
            at = 0
            for gpa, size in pieces:
                self._view.write(gpa, data[at : at + size])
                at += size
        except RmpViolation as violation:
            raise NotMapped(f"the kernel cannot write at {address:#x}: {violation}") from violation

    def _pieces(self, address: int, length: int) -> list[tuple[int, int]]:
        """(GPA, size) of the parts of a virtual range, page by page."""
        pieces = []
        end = address + length
        while address < end:
            size = min(end, (address | PAGE_SIZE - 1) + 1) - address
            pieces.append((self._translate(address), size))
            address += size
        return pieces

    def _translate(self, address: int) -> int:
        if address >> 47 not in (0, (1 << 17) - 1):
            raise NotMapped(f"{address:#x} is not canonical")
        table = self._root
        for shift in _LEVELS:
            entry = self._view.read_u64(table + (address >> shift) % ENTRIES * 8)
            if not entry & PRESENT:
                raise NotMapped(f"{address:#x} is not mapped")
            last = shift == _LEVELS[-1] or (entry & LARGE and shift != _LEVELS[0])
            if not last:
                table = entry & ADDRESS
                continue
            if not entry & C_BIT:
                # The host could change it between the check and the use; services decide by it.
                raise NotMapped(f"{address:#x} is shared memory")
            size = 1 << shift
            return (entry & ADDRESS & -size) | (address & size - 1)
        raise AssertionError("the last level maps a page")
