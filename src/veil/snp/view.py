# SPDX-License-Identifier: GPL-2.0-or-later
"""Views: how Python code reaches guest memory, with the checks that machine code of the same level meets.

A view's fast path looks at the RMP entry's word in Python and lets an access through only if the entry grants it;
everything else goes to the C function that guest machine code is checked with, which decides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.errors import RmpViolation, SnpError
from veil.snp.guest_bus import GuestBus, is_shared
from veil.snp.rmp import (
    OUTSIDE,
    VMSA_WORD,
    Adjustment,
    EntryFlag,
    PageSize,
    Permission,
    PvalidateResult,
    RmpqueryResult,
    RmpResult,
    fault_reason,
)

__all__ = ["View"]

_NO_RAM = int(EntryFlag.NO_RAM)
_SIZE_2M = int(EntryFlag.SIZE_2M)
_READY = int(EntryFlag.ASSIGNED | EntryFlag.VALIDATED)
_R = int(Permission.R)
_W = int(Permission.W)
_PAGE_MASK = PAGE_SIZE - 1
_LAST_U32 = PAGE_SIZE - 4
_LAST_U64 = PAGE_SIZE - 8
_BASE_2M = ~511
#: Up to so many pages Python looks at their entries; for more the call of C is faster.
_FEW = 16
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def _access_name(permissions: int) -> str:
    if permissions & (Permission.UX | Permission.SX):
        return "execute"
    return "write" if permissions & _W else "read"


class View:
    """Guest memory as code at this VMPL and CPL sees it, through an identity mapping.

    Accesses are private (C-bit 1) unless `private=False`.  An access that spans pages is checked on all of them before
    a byte moves.
    """

    __slots__ = (
        "_bus",
        "_code",
        "_map",
        "_r",
        "_rmp",
        "_rw",
        "_size",
        "_state",
        "_w",
        "_w_2m",
        "_words",
        "cpl",
        "vmpl",
    )

    def __init__(self, bus: GuestBus, vmpl: int, cpl: int = 0) -> None:
        if vmpl not in range(4) or cpl not in range(4):
            raise SnpError(f"there is no VMPL {vmpl} with CPL {cpl}")
        self.vmpl = vmpl
        self.cpl = cpl
        self._bus = bus
        self._map = bus.memory.mapping
        self._size = bus.memory.size
        self._rmp = bus.rmp
        self._words = bus.rmp.words
        self._state = bus.rmp.state
        self._code = bus.code_map.data
        self._r = _READY | _R << 32 + 8 * vmpl
        self._w = _READY | _W << 32 + 8 * vmpl
        self._rw = self._r | self._w
        self._w_2m = self._w | _SIZE_2M

    def lower(self, vmpl: int, cpl: int = 0) -> View:
        """The view of a context that this one sets up: of its own level or a less privileged one."""
        if vmpl < self.vmpl or (vmpl == self.vmpl and cpl < self.cpl):
            raise SnpError(f"VMPL {self.vmpl}, CPL {self.cpl} cannot lend itself VMPL {vmpl}, CPL {cpl}")
        return View(self._bus, vmpl, cpl)

    # Checks

    def check(self, gpa: int, length: int, permissions: int, *, private: bool = True) -> None:
        """Raise RmpViolation unless this level has the permissions on all of the range."""
        if length < 0:
            raise SnpError(f"negative length {length}")
        fault, where = self._rmp.check_range(gpa, length, vmpl=self.vmpl, permissions=permissions, private=private)
        if fault:
            inside = 0 <= where < self._size and not self._words[where >> 12] & _NO_RAM
            raise RmpViolation(
                where, self.vmpl, _access_name(permissions), fault_reason(fault) if inside else OUTSIDE, fault
            )

    def allows(self, gpa: int, permissions: int, length: int = 1, *, private: bool = True) -> bool:
        """Would `check` pass?"""
        page, last = gpa >> 12, gpa + length - 1 >> 12
        if (
            private
            and 0 <= gpa < gpa + length <= self._size
            and last - page < _FEW
            and not page <= self._state[VMSA_WORD] >> 12 <= last
            and self._all_grant(page, last, _READY | permissions << 32 + 8 * self.vmpl)
        ):
            return True
        fault, _ = self._rmp.check_range(gpa, length, vmpl=self.vmpl, permissions=permissions, private=private)
        return not fault

    def check_execute(self, gpa: int, length: int = 1) -> None:
        """Raise RmpViolation unless code of this VMPL and CPL may execute the range."""
        self.check(gpa, length, Permission.UX if self.cpl == 3 else Permission.SX)

    def _grants(self, page: int, need: int) -> bool:
        """Does the entry that governs a page of a private access surely grant it?"""
        words = self._words
        if words[page] & need == need:
            return True
        need |= _SIZE_2M
        return words[page & _BASE_2M] & need == need

    def _all_grant(self, first: int, last: int, need: int) -> bool:
        """The same of several pages."""
        words, need_2m = self._words, need | _SIZE_2M
        page = first
        while page <= last and (words[page] & need == need or words[page & _BASE_2M] & need_2m == need_2m):
            page += 1
        return page > last

    # Reading

    def read(self, gpa: int, length: int, *, private: bool = True) -> bytes:
        """Bytes from memory."""
        end = gpa + length
        page, last = gpa >> 12, end - 1 >> 12
        if private:
            # Most accesses lie in a page, or in a few, whose own entries grant them.
            if not (
                0 <= gpa < end <= self._size
                and (self._words[page] & self._r == self._r or self._grants(page, self._r))
                and (last == page or (last - page < _FEW and self._all_grant(page + 1, last, self._r)))
            ):
                self.check(gpa, length, _R)
        elif not (0 <= gpa < end <= self._size and page == last and is_shared(self._words, page)):
            self.check(gpa, length, _R, private=False)
        return self._map[gpa:end]

    def read_u8(self, gpa: int, *, private: bool = True) -> int:
        """An unsigned byte."""
        if not (private and 0 <= gpa < self._size and self._grants(gpa >> 12, self._r)):
            self.check(gpa, 1, _R, private=private)
        return self._map[gpa]

    def read_u16(self, gpa: int, *, private: bool = True) -> int:
        """Two bytes, little-endian."""
        value: int = _U16.unpack(self.read(gpa, 2, private=private))[0]
        return value

    def read_u32(self, gpa: int, *, private: bool = True) -> int:
        """Four bytes, little-endian."""
        value: int
        page = gpa >> 12
        if (
            private
            and 0 <= gpa < self._size
            and gpa & _PAGE_MASK <= _LAST_U32
            and (self._words[page] & self._r == self._r or self._grants(page, self._r))
        ):
            value = _U32.unpack_from(self._map, gpa)[0]
        else:
            value = _U32.unpack(self.read(gpa, 4, private=private))[0]
        return value

    def read_u64(self, gpa: int, *, private: bool = True) -> int:
        """Eight bytes, little-endian."""
        value: int
        page = gpa >> 12
        if (
            private
            and 0 <= gpa < self._size
            and gpa & _PAGE_MASK <= _LAST_U64
            and (self._words[page] & self._r == self._r or self._grants(page, self._r))
        ):
            value = _U64.unpack_from(self._map, gpa)[0]
        else:
            value = _U64.unpack(self.read(gpa, 8, private=private))[0]
        return value

    # Writing

    def _may_write(self, gpa: int, length: int, private: bool) -> None:
        end = gpa + length
        page, last = gpa >> 12, end - 1 >> 12
        if private:
            if not (
                0 <= gpa < end <= self._size
                and (self._words[page] & self._w == self._w or self._grants(page, self._w))
                and (last == page or (last - page < _FEW and self._all_grant(page + 1, last, self._w)))
                and not page <= self._state[VMSA_WORD] >> 12 <= last
            ):
                self.check(gpa, length, _W)
        elif not (
            0 <= gpa < end <= self._size
            and page == last
            and is_shared(self._words, page)
            and page != self._state[VMSA_WORD] >> 12
        ):
            self.check(gpa, length, _W, private=False)

    def write(self, gpa: int, data: bytes | bytearray | memoryview, *, private: bool = True) -> None:
        """Bytes to memory."""
        length = len(data)
        end = gpa + length
        page, last = gpa >> 12, end - 1 >> 12
        if not (
            private
            and page == last
            and gpa >= 0
            and end <= self._size
            and (self._words[page] & self._w == self._w or self._words[page & _BASE_2M] & self._w_2m == self._w_2m)
            and page != self._state[VMSA_WORD] >> 12
        ):
            self._may_write(gpa, length, private)
        self._map[gpa:end] = data
        code = self._code
        if length and (code[page] or (last != page and (code[last] or last - page > 1))):
            self._bus.written(gpa, length)

    def write_u8(self, gpa: int, value: int, *, private: bool = True) -> None:
        """An unsigned byte."""
        self.write(gpa, bytes((value,)), private=private)

    def write_u16(self, gpa: int, value: int, *, private: bool = True) -> None:
        """Two bytes, little-endian."""
        self.write(gpa, _U16.pack(value), private=private)

    def write_u32(self, gpa: int, value: int, *, private: bool = True) -> None:
        """Four bytes, little-endian."""
        page = gpa >> 12
        if (
            private
            and 0 <= gpa < self._size
            and gpa & _PAGE_MASK <= _LAST_U32
            and self._grants(page, self._w)
            and page != self._state[VMSA_WORD] >> 12
            and not self._code[page]
        ):
            _U32.pack_into(self._map, gpa, value)
        else:
            self.write(gpa, _U32.pack(value), private=private)

    def write_u64(self, gpa: int, value: int, *, private: bool = True) -> None:
        """Eight bytes, little-endian."""
        page = gpa >> 12
        if (
            private
            and 0 <= gpa < self._size
            and gpa & _PAGE_MASK <= _LAST_U64
            and self._words[page] & self._w == self._w
            and page != self._state[VMSA_WORD] >> 12
            and not self._code[page]
        ):
            _U64.pack_into(self._map, gpa, value)
        else:
            self.write(gpa, _U64.pack(value), private=private)

    def write_fields(self, page: int, fields: Iterable[tuple[int, int]]) -> None:
        """Eight bytes, little-endian, at each of these offsets into a private page, which is checked once."""
        number = page >> 12
        if page & _PAGE_MASK:
            raise SnpError(f"{page:#x} is not the address of a page")
        if not (
            0 <= page < self._size
            and self._words[number] & self._w == self._w
            and number != self._state[VMSA_WORD] >> 12
        ):
            self._may_write(page, PAGE_SIZE, True)
        memory, pack = self._map, _U64.pack_into
        for offset, value in fields:
            if not 0 <= offset <= _LAST_U64:
                raise SnpError(f"there is no field at {offset:#x} of a page")
            pack(memory, page + offset, value)
        if self._code[number]:
            self._bus.written(page, PAGE_SIZE)

    def zero(self, gpa: int, length: int, *, private: bool = True) -> None:
        """Clear a range."""
        self._may_write(gpa, length, private)
        if length:
            self._bus.memory.zero(gpa, length)
            self._bus.written(gpa, length)

    def exchange_u8(self, gpa: int, value: int, *, private: bool = True) -> int:
        """XCHG: write a byte and return what was there."""
        data = bytes((value,))
        page = gpa >> 12
        if not (
            private
            and 0 <= gpa < self._size
            and (self._words[page] & self._rw == self._rw or self._grants(page, self._rw))
            and page != self._state[VMSA_WORD] >> 12
        ):
            self.check(gpa, 1, _R | _W, private=private)
        old = self._map[gpa]
        self._map[gpa : gpa + 1] = data
        if self._code[page]:
            self._bus.written(gpa, 1)
        return old

    # Instructions

    def pvalidate(self, gpa: int, *, size: PageSize = PageSize.SIZE_4K, validate: bool = True) -> PvalidateResult:
        """PVALIDATE."""
        return self._rmp.pvalidate(gpa, vmpl=self.vmpl, cpl=self.cpl, size=size, validate=validate)

    def rmpadjust(
        self,
        gpa: int,
        *,
        vmpl: int,
        permissions: int,
        size: PageSize = PageSize.SIZE_4K,
        vmsa: bool = False,
    ) -> RmpResult:
        """RMPADJUST; `vmpl` is the level whose permissions are set."""
        return self._rmp.rmpadjust(
            gpa, vmpl=self.vmpl, cpl=self.cpl, target=vmpl, permissions=permissions, size=size, vmsa=vmsa
        )

    def rmpadjust_all(self, adjustments: Sequence[Adjustment]) -> tuple[RmpResult, int]:
        """RMPADJUST of 4 KiB pages, one after the other, until the first that fails; also tells its address.

        A refusal that the host must resolve is raised for the page that met it; repeating all of them is harmless.
        """
        return self._rmp.rmpadjust_all(adjustments, vmpl=self.vmpl, cpl=self.cpl)

    def rmpquery(self, gpa: int, *, vmpl: int) -> RmpqueryResult:
        """RMPQUERY; `vmpl` is the level that is asked about."""
        return self._rmp.rmpquery(gpa, vmpl=self.vmpl, cpl=self.cpl, target=vmpl)
