# SPDX-License-Identifier: GPL-2.0-or-later
"""How the host reaches guest memory: what it owns, and ciphertext."""

from __future__ import annotations

import struct

import numpy as np

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.errors import RmpViolation, SnpError
from veil.snp.guest_bus import GuestBus, is_shared
from veil.snp.rmp import FAULT_RMP, OUTSIDE, EntryFlag, PageSize, RmpResult

__all__ = ["HostView"]

_NO_RAM = int(EntryFlag.NO_RAM)
_PAGE_MASK = PAGE_SIZE - 1
_ZEROS = bytes(PAGE_SIZE)
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class HostView:
    """Guest memory as the host sees it: pages that the guest owns read as ciphertext and refuse writes."""

    __slots__ = ("_bus", "_code", "_map", "_size", "_words")

    def __init__(self, bus: GuestBus) -> None:
        self._bus = bus
        self._map = bus.memory.mapping
        self._size = bus.memory.size
        self._words = bus.rmp.words
        self._code = bus.code_map.data

    def _check_bounds(self, gpa: int, length: int, access: str) -> None:
        if length < 0:
            raise SnpError(f"negative length {length}")
        if gpa < 0 or gpa + length > self._size:
            raise RmpViolation(gpa, None, access, OUTSIDE)

    def is_shared(self, gpa: int, length: int = 1) -> bool:
        """Is all of the range in memory and the host's?"""
        if length < 0 or not 0 <= gpa <= self._size - length:
            return False
        words = self._words
        # A loop: of most ranges, which are one page, it takes half the time of all().
        for page in range(gpa >> 12, gpa + length + _PAGE_MASK >> 12):  # noqa: SIM110
            if not is_shared(words, page):
                return False
        return True

    def is_private(self, gpa: int, length: int = 1) -> bool:
        """Is all of the range in memory and the guest's?"""
        if length < 0 or not 0 <= gpa <= self._size - length:
            return False
        first = gpa >> 12
        return bool(self._bus.rmp.assigned(first, (gpa + length + _PAGE_MASK >> 12) - first).all())

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes from memory, ciphertext where the guest owns it."""
        end = gpa + length
        if 0 <= gpa < end <= self._size and gpa ^ (end - 1) < PAGE_SIZE and is_shared(self._words, gpa >> 12):
            return self._map[gpa:end]
        self._check_bounds(gpa, length, "read")
        parts: list[bytes] = []
        while gpa < end:
            stop = min(end, (gpa | _PAGE_MASK) + 1)
            page = gpa >> 12
            if is_shared(self._words, page):
                parts.append(self._map[gpa:stop])
            elif self._words[page] & _NO_RAM:
                raise RmpViolation(gpa, None, "read", OUTSIDE)
            else:
                base = page << 12
                content = self._bus.encryption.encrypt_page(base, self._map[base : base + PAGE_SIZE])
                parts.append(content[gpa - base : stop - base])
            gpa = stop
        return b"".join(parts)

    def read_u8(self, gpa: int) -> int:
        """An unsigned byte."""
        return self.read(gpa, 1)[0]

    def read_u16(self, gpa: int) -> int:
        """Two bytes, little-endian."""
        value: int = _U16.unpack(self.read(gpa, 2))[0]
        return value

    def read_u32(self, gpa: int) -> int:
        """Four bytes, little-endian."""
        value: int = _U32.unpack(self.read(gpa, 4))[0]
        return value

    def read_u64(self, gpa: int) -> int:
        """Eight bytes, little-endian."""
        value: int = _U64.unpack(self.read(gpa, 8))[0]
        return value

    def _may_write(self, gpa: int, length: int) -> None:
        end = gpa + length
        if 0 <= gpa < end <= self._size and gpa ^ (end - 1) < PAGE_SIZE and is_shared(self._words, gpa >> 12):
            return
        self._check_bounds(gpa, length, "write")
        for page in range(gpa >> 12, end + _PAGE_MASK >> 12):
            if not is_shared(self._words, page):
                reason = OUTSIDE if self._words[page] & _NO_RAM else "the page is the guest's"
                raise RmpViolation(max(gpa, page << 12), None, "write", reason, FAULT_RMP)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Bytes to memory that the host owns."""
        length = len(data)
        self._may_write(gpa, length)
        self._map[gpa : gpa + length] = data
        if length and (self._code[gpa >> 12] or gpa ^ (gpa + length - 1) >= PAGE_SIZE):
            self._bus.written(gpa, length)

    def write_u8(self, gpa: int, value: int) -> None:
        """An unsigned byte."""
        self.write(gpa, bytes((value,)))

    def write_u16(self, gpa: int, value: int) -> None:
        """Two bytes, little-endian."""
        self.write(gpa, _U16.pack(value))

    def write_u32(self, gpa: int, value: int) -> None:
        """Four bytes, little-endian."""
        self.write(gpa, _U32.pack(value))

    def write_u64(self, gpa: int, value: int) -> None:
        """Eight bytes, little-endian."""
        self.write(gpa, _U64.pack(value))

    def zero(self, gpa: int, length: int) -> None:
        """Clear a range that the host owns."""
        self._may_write(gpa, length)
        if length:
            self._bus.memory.zero(gpa, length)
            self._bus.written(gpa, length)

    # Instructions

    def rmpupdate(
        self,
        gpa: int,
        *,
        assigned: bool,
        size: PageSize = PageSize.SIZE_4K,
        immutable: bool = False,
        count: int = 1,
    ) -> RmpResult:
        """RMPUPDATE of `count` pages in a row, until the first that fails.

        A page that changes hands keeps its bits in DRAM, which the new owner sees through the cipher: the host reads
        a page it took back as ciphertext, the guest reads what the host left in a page it was given as noise.
        Approximation: a page of nothing but zeros, such as one that nobody ever wrote, stays zero.
        """
        first = gpa >> 12
        memory, rmp = self._bus.memory, self._bus.rmp
        if count < 0 or gpa < 0 or first + count * size.pages > memory.pages:
            return RmpResult.FAIL_INPUT
        if count * size.pages == 1:
            # Guests change thousands of pages one by one: without arrays.
            was_assigned = not is_shared(self._words, first)
            code, done = rmp.rmpupdate(gpa, assigned=assigned, size=size, immutable=immutable)
            if done and was_assigned != assigned:
                self._pass_on(first << 12, assigned)
            return code
        before = rmp.assigned(first, count * size.pages)
        code, done = rmp.rmpupdate(gpa, assigned=assigned, size=size, immutable=immutable, count=count)
        pages = done * size.pages
        changed = (before[:pages] != assigned) & memory.written_pages(first, pages)
        for page in np.flatnonzero(changed).tolist():
            self._pass_on((first + page) * PAGE_SIZE, assigned)
        return code

    def _pass_on(self, base: int, assigned: bool) -> None:
        """A page changed hands: its bits through the cipher."""
        content = self._map[base : base + PAGE_SIZE]
        if content != _ZEROS:
            cipher = self._bus.encryption.decrypt_page if assigned else self._bus.encryption.encrypt_page
            self._map[base : base + PAGE_SIZE] = cipher(base, content)
            self._bus.written(base, PAGE_SIZE)

    def psmash(self, gpa: int) -> RmpResult:
        """PSMASH: split a 2 MiB entry into 4 KiB entries of the same state."""
        return self._bus.rmp.psmash(gpa)
