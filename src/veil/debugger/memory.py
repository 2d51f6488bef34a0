# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual memory of a context, as its page tables and the RMP have it for its VMPL (24593, 5.2 and 5.3).

Each access, those of the walk too, is one that the context could make: private or shared as the last entry says, and
refused where the RMP refuses it. Left out is what page tables forbid (writing to read-only pages, the kernel's pages to
user code): a debugger writes to where its user cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from veil.formats.board import C_BIT
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.page_table_entries import ADDRESS, LARGE, PRESENT
from veil.formats.registers import Cr0, Cr4, Efer
from veil.snp import Permission, RmpViolation

if TYPE_CHECKING:
    from veil.snp import View
    from veil.snp.layouts import Vmsa

__all__ = ["ContextMemory", "NotThere", "Page"]

_U32 = (1 << 32) - 1


class NotThere(Exception):
    """The context has nothing at this address, or may not do that with it; one line why."""


class Page(NamedTuple):
    """Where an address leads."""

    gpa: int
    private: bool
    end: int
    """of the page, as a GPA"""


class _Tables(NamedTuple):
    """The page tables of a mode: the lowest address bit of each level's index, and of a page that ends there."""

    shifts: tuple[int, ...]
    entry: int
    """bytes"""
    large: tuple[int, ...]
    """levels whose entries may map a page"""
    address: int


_LONG = _Tables((39, 30, 21, 12), 8, (30, 21), ADDRESS)
_PAE = _Tables((30, 21, 12), 8, (21,), ADDRESS)
_LEGACY = _Tables((22, 12), 4, (22,), _U32 & -PAGE_SIZE)


class ContextMemory:
    """What one context finds at its virtual addresses now."""

    def __init__(self, view: View, vmsa: Vmsa) -> None:
        """`view`: of the context's VMPL."""
        self._view = view
        self._cr3 = vmsa.cr3
        self._long = bool(vmsa.efer & Efer.LMA)
        self._tables: _Tables | None = None
        if vmsa.cr0 & Cr0.PG:
            self._tables = _LONG if self._long else _PAE if vmsa.cr4 & Cr4.PAE else _LEGACY

    def read(self, address: int, length: int) -> bytes:
        """The bytes at an address, as many of them as there are. Raises NotThere if there is not one."""
        parts: list[bytes] = []
        while length:
            try:
                page = self.translate(address)
                # The RMP may decide otherwise on each 4 KiB.
                size = min(length, PAGE_SIZE - page.gpa % PAGE_SIZE)
                parts.append(self._view.read(page.gpa, size, private=page.private))
            except (RmpViolation, NotThere) as error:
                if parts:
                    break
                raise NotThere(str(error)) from error
            address += size
            length -= size
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Put all bytes there. Raises NotThere, and none was put there."""
        pieces: list[tuple[Page, bytes]] = []
        try:
            while data:
                page = self.translate(address)
                piece, data = data[: page.end - page.gpa], data[page.end - page.gpa :]
                self._view.check(page.gpa, len(piece), Permission.RW, private=page.private)
                pieces.append((page, piece))
                address += len(piece)
            for page, piece in pieces:
                self._view.write(page.gpa, piece, private=page.private)
        except RmpViolation as violation:
            raise NotThere(str(violation)) from violation

    def translate(self, address: int) -> Page:
        """Where an address leads. Raises NotThere."""
        if not self._long:
            address &= _U32
        elif address >> 47 not in (0, (1 << 17) - 1):
            raise NotThere(f"{address:#x} is not canonical")
        if self._tables is None:
            return Page(address, True, (address | PAGE_SIZE - 1) + 1)
        tables = self._tables
        table = self._cr3 & (tables.address if self._long or tables is _LEGACY else _U32 & -32)
        for shift in tables.shifts:
            index = (address >> shift) % (PAGE_SIZE // tables.entry)
            if tables is _PAE and shift == tables.shifts[0]:
                index %= 4
            entry = self._entry(table + index * tables.entry, tables.entry)
            if not entry & PRESENT:
                raise NotThere(f"{address:#x} is not mapped")
            if shift == tables.shifts[-1] or (entry & LARGE and shift in tables.large):
                size = 1 << shift
                base = entry & tables.address & -size
                private = not self._long or bool(entry & C_BIT)
                return Page(base | address & size - 1, private, base + size)
            table = entry & tables.address
        raise AssertionError("the last level maps a page")

    def _entry(self, gpa: int, size: int) -> int:
        try:
            return int.from_bytes(self._view.read(gpa, size), "little")
        except RmpViolation as violation:
            raise NotThere(f"a page table: {violation}") from violation
