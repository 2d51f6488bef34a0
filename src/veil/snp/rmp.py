# SPDX-License-Identifier: GPL-2.0-or-later
"""The reverse map table (RMP) and the instructions on it.

AMD64 Architecture Programmer's Manual, volume 2 (24593), 15.36 "Secure Nested Paging", and volume 3 (24594).  The
rules are in C (`engine/rmp.c`), where guest code meets them; this module calls the same functions, so that hosted
code and guest machine code cannot be treated differently.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from veil.formats.nested_faults import NestedFault
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.permissions import Permission
from veil.snp import _engine_library
from veil.snp.errors import RmpViolation, SnpError
from veil.snp.rmp_table import new_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ENTRY_DTYPE",
    "FAULT_ENC",
    "FAULT_GP",
    "FAULT_NOT_VALIDATED",
    "FAULT_RMP",
    "FAULT_SIZEM",
    "FAULT_VMPL",
    "OUTSIDE",
    "Adjustment",
    "EntryFlag",
    "PageSize",
    "Permission",
    "PvalidateResult",
    "Rmp",
    "RmpResult",
    "RmpqueryResult",
]

# EXITINFO1 of a nested page fault as plain numbers, and two outcomes that are not nested page faults.
FAULT_RMP = int(NestedFault.RMP)
FAULT_ENC = int(NestedFault.ENC)
FAULT_SIZEM = int(NestedFault.SIZEM)
FAULT_VMPL = int(NestedFault.VMPL)
FAULT_GP = 1 << 62
FAULT_NOT_VALIDATED = 1 << 63

NO_VMSA = (1 << 64) - 1

# Words of `Rmp.state`.
_GENERATION_WORD = 2
VMSA_WORD = 3

_PAGE_MASK = PAGE_SIZE - 1

#: The layout of `veil_rmp_entry` in engine/rmp.h.
ENTRY_DTYPE = np.dtype([("flags", "u1"), ("reserved", "u1", (3,)), ("perms", "u1", (4,))])


class PageSize(enum.IntEnum):
    """The size operand of the RMP instructions."""

    SIZE_4K = 0
    SIZE_2M = 1

    @property
    def pages(self) -> int:
        """How many 4 KiB pages it covers."""
        return 512 if self else 1


class EntryFlag(enum.IntFlag):
    """The state bits of an RMP entry."""

    ASSIGNED = 1
    VALIDATED = 2
    VMSA = 4
    SIZE_2M = 8
    IMMUTABLE = 16
    NO_RAM = 128


_NOWHERE = np.array((int(EntryFlag.NO_RAM), 0, 0), dtype=ENTRY_DTYPE)
_ASSIGNED, _SIZE_2M, _IMMUTABLE = int(EntryFlag.ASSIGNED), int(EntryFlag.SIZE_2M), int(EntryFlag.IMMUTABLE)
_VMSA_READY = int(EntryFlag.ASSIGNED | EntryFlag.VALIDATED | EntryFlag.VMSA)
_VMSA_FLAGS = _VMSA_READY | int(EntryFlag.SIZE_2M | EntryFlag.IMMUTABLE)


class RmpResult(enum.IntEnum):
    """What the instructions leave in EAX."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_INUSE = 3
    FAIL_OVERLAP = 4
    FAIL_SIZEMISMATCH = 6


# The enumeration's own call would be a fifth of every instruction's time.
_RESULTS = {int(code): code for code in RmpResult}


class PvalidateResult(NamedTuple):
    """PVALIDATE's EAX and CF."""

    code: RmpResult
    unchanged: bool


class RmpqueryResult(NamedTuple):
    """RMPQUERY's EAX, RDX and RCX."""

    code: RmpResult
    permissions: Permission
    vmsa: bool
    size: PageSize


#: VEIL_RMP_REMEMBERED: of so many changes the engine knows where they were
REMEMBERED = 256


class _RmpStruct(ctypes.Structure):
    """`veil_rmp` in engine/rmp.h."""

    _fields_ = [
        ("entries", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
        ("generation", ctypes.c_uint64),
        ("vmsa_in_use", ctypes.c_uint64),
        ("last_ended", ctypes.c_uint64 * REMEMBERED),
    ]


#: GPA, how many 4 KiB pages in a row, the level whose permissions are set, these permissions
Adjustment: TypeAlias = tuple[int, int, int, int]
#: `veil_rmp_adjustment`; a mask's upper bits are the attributes' others, of which none is set
_ADJUSTMENT = struct.Struct("<QQBB6x")

_U64 = ctypes.c_uint64
_U32 = ctypes.c_uint
_INT = ctypes.c_int
_PTR = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "veil_pvalidate": ([_PTR, _U32, _U32, _U64, _INT, _U32, _U32], _U64),
    "veil_rmpadjust": ([_PTR, _U32, _U32, _U64, _INT, _U32, _U64], _U64),
    "veil_rmpadjust_all": ([_PTR, _U32, _U32, ctypes.c_char_p, _U64, ctypes.POINTER(_U64)], _U64),
    "veil_rmpquery": ([_PTR, _U32, _U32, _U64, _INT, _U64], _U64),
    "veil_rmpupdate_range": ([_PTR, _U64, _U32, _U64, ctypes.POINTER(_U64)], ctypes.c_uint32),
    "veil_psmash": ([_PTR, _U64], ctypes.c_uint32),
    "veil_rmp_launch_page": ([_PTR, _U64, _U32, _U32, ctypes.c_uint32], ctypes.c_uint32),
    "veil_rmp_is_vmsa": ([_PTR, _U64], _INT),
    "veil_rmp_check_range": ([_PTR, _U64, _U64, _U32, _U32, _INT, ctypes.POINTER(_U64)], _U64),
}
_U64_MAX = (1 << 64) - 1
OUTSIDE = "outside guest memory"


class _Functions:
    """The C functions with their signatures, of the library in use."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (argtypes, restype) in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = argtypes
            function.restype = restype
            setattr(self, name.removeprefix("veil_"), function)

    pvalidate: Any
    rmpadjust: Any
    rmpadjust_all: Any
    rmpquery: Any
    rmpupdate_range: Any
    psmash: Any
    rmp_launch_page: Any
    rmp_is_vmsa: Any
    rmp_check_range: Any


def fault_reason(fault: int) -> str:
    """A fault of engine/rmp.h in words."""
    if fault & FAULT_GP:
        return "#GP: the instruction needs CPL 0"
    if fault & FAULT_NOT_VALIDATED:
        return "the page is not validated"
    if fault & FAULT_VMPL:
        return "the level lacks the permission"
    if fault & FAULT_SIZEM:
        return "the page is part of a 2 MiB RMP entry"
    if fault & FAULT_ENC:
        return "private access to a page that the guest does not own or may not change"
    return "shared access to a private page"


class Rmp:
    """One entry per 4 KiB page of guest memory.

    `entries` shows the table itself.  While the entry at a 2 MiB boundary has SIZE_2M, it speaks for all 512 pages and
    the entries after it are zero; `effective()` spreads it out.  `holes`: page numbers that are no RAM.
    """

    def __init__(self, pages: int, holes: Sequence[range] = ()) -> None:
        if pages <= 0:
            raise SnpError(f"an RMP needs at least one page, not {pages}")
        self._c = _Functions(_engine_library.library())
        self.pages = pages
        self.entries: NDArray[Any] = new_table(pages, holes, _NOWHERE)
        #: the same entries as 64-bit words, flags in bits 7:0 and the permissions of VMPL v from bit 32 + 8 * v
        self.words: memoryview[int] = self.entries.view("<u8").data.cast("B").cast("Q")
        self._struct = _RmpStruct(self.entries.ctypes.data, pages, 0, NO_VMSA)
        #: the C structure as 64-bit words: views compare [VMSA_WORD] with every write
        self.state: memoryview[int] = memoryview(self._struct).cast("B").cast("Q")
        #: of the C structure, for the engine
        self.address: int = ctypes.addressof(self._struct)
        self._out = _U64()
        self._out_ref = ctypes.pointer(self._out)

    @property
    def generation(self) -> int:
        """Grows whenever an access that was allowed may have ended: who caches translations must drop them."""
        return self.state[_GENERATION_WORD]

    @property
    def vmsa_in_use(self) -> int | None:
        """The GPA of the VMSA that runs now."""
        value = self.state[VMSA_WORD]
        return None if value == NO_VMSA else value

    @vmsa_in_use.setter
    def vmsa_in_use(self, gpa: int | None) -> None:
        self.state[VMSA_WORD] = NO_VMSA if gpa is None else gpa

    # Checks

    def check_range(
        self, gpa: int, length: int, *, vmpl: int, permissions: int, private: bool = True
    ) -> tuple[int, int]:
        """The first fault of an access and its address; fault 0 if the access is allowed."""
        outside = FAULT_RMP | (FAULT_ENC if private else 0)
        end = self.pages * PAGE_SIZE
        if gpa < 0 or length < 0 or gpa > end:
            return outside, gpa
        fault = self._c.rmp_check_range(
            self.address, gpa, min(length, end - gpa), vmpl, permissions, private, self._out_ref
        )
        if not fault and gpa + length > end:
            # What lies inside is checked first, as an access byte by byte would meet it.
            return outside, end
        return (fault, self._out.value) if fault else (0, gpa)

    def is_vmsa(self, gpa: int) -> bool:
        """May VMRUN enter the VMSA at this address?  (APM volume 2, 15.36.12)"""
        page = gpa >> 12
        if not gpa & _PAGE_MASK and 0 <= page < self.pages:
            words = self.words
            if words[page] & _VMSA_FLAGS == _VMSA_READY and not words[page & ~511] & _SIZE_2M:
                return True
        return 0 <= gpa <= _U64_MAX and bool(self._c.rmp_is_vmsa(self.address, gpa))

    def is_assigned(self, gpa: int) -> bool:
        """Does the guest own the page?"""
        return bool(self.entry(gpa)["flags"] & EntryFlag.ASSIGNED)

    def entry(self, gpa: int) -> Any:
        """The entry that governs a page (a numpy record, live)."""
        page = gpa // PAGE_SIZE
        if not 0 <= page < self.pages:
            raise SnpError(f"{gpa:#x} is outside guest memory")
        base = page & ~511
        return self.entries[base if self.entries[base]["flags"] & EntryFlag.SIZE_2M else page]

    def assigned(self, first: int, count: int) -> NDArray[np.bool_]:
        """For each of these pages (numbers, not addresses): does the guest own it?"""
        flags = self.entries["flags"]
        result: NDArray[np.bool_] = (flags[first : first + count] & EntryFlag.ASSIGNED).astype(bool)
        for base in range(first & ~511, first + count, 512):
            if flags[base] & EntryFlag.SIZE_2M:
                result[max(base - first, 0) : base - first + 512] = True
        return result

    def effective(self) -> NDArray[Any]:
        """A copy of the table in which every page of a 2 MiB entry shows that entry."""
        table: NDArray[Any] = self.entries.copy()
        for base in np.flatnonzero(self.entries["flags"] & EntryFlag.SIZE_2M):
            table[base : base + 512] = table[base]
        return table

    # Guest instructions

    def pvalidate(
        self,
        gpa: int,
        *,
        vmpl: int,
        cpl: int = 0,
        size: PageSize = PageSize.SIZE_4K,
        validate: bool = True,
        private: bool = True,
    ) -> PvalidateResult:
        """PVALIDATE (APM volume 3): accept or give back a page that the host assigned."""
        self._check_operand(gpa, vmpl, "PVALIDATE")
        result = self._c.pvalidate(self.address, vmpl, cpl, gpa, private, 1 if size else 0, validate)
        code = self._guest_code(result, gpa, vmpl, "PVALIDATE")
        return PvalidateResult(code, bool(result >> 8 & 1))

    def rmpadjust(
        self,
        gpa: int,
        *,
        vmpl: int,
        target: int,
        permissions: int,
        cpl: int = 0,
        size: PageSize = PageSize.SIZE_4K,
        vmsa: bool = False,
        private: bool = True,
    ) -> RmpResult:
        """RMPADJUST (APM volume 3): set what a less privileged level may do with a page."""
        self._check_operand(gpa, vmpl, "RMPADJUST")
        if not (0 <= target <= 0xFF and 0 <= permissions <= 0xFF):
            return RmpResult.FAIL_INPUT
        attributes = target | permissions << 8 | vmsa << 16
        result = self._c.rmpadjust(self.address, vmpl, cpl, gpa, private, 1 if size else 0, attributes)
        return self._guest_code(result, gpa, vmpl, "RMPADJUST")

    def rmpadjust_all(self, adjustments: Sequence[Adjustment], *, vmpl: int, cpl: int = 0) -> tuple[RmpResult, int]:
        """RMPADJUST of private 4 KiB pages, one after the other, until the first that fails; tells its address.

        Raises SnpError, before any of them, for numbers that these instructions cannot be given.
        """
        try:
            packed = b"".join([_ADJUSTMENT.pack(*each) for each in adjustments])
        except struct.error as error:
            raise SnpError(f"RMPADJUST cannot be given what is in {adjustments}: {error}") from error
        result = self._c.rmpadjust_all(self.address, vmpl, cpl, packed, len(adjustments), self._out_ref)
        failed = self._out.value
        return self._guest_code(result, failed, vmpl, "RMPADJUST"), failed

    def rmpquery(self, gpa: int, *, vmpl: int, target: int, cpl: int = 0, private: bool = True) -> RmpqueryResult:
        """RMPQUERY (APM volume 3): what may a level do with a page?"""
        self._check_operand(gpa, vmpl, "RMPQUERY")
        if not 0 <= target <= 0xFF:
            return RmpqueryResult(RmpResult.FAIL_INPUT, Permission.NONE, False, PageSize.SIZE_4K)
        result = self._c.rmpquery(self.address, vmpl, cpl, gpa, private, target)
        code = self._guest_code(result, gpa, vmpl, "RMPQUERY")
        return RmpqueryResult(code, Permission(result >> 8 & 0xFF), bool(result >> 16 & 1), PageSize(result >> 17 & 1))

    def _check_operand(self, gpa: int, vmpl: int, access: str) -> None:
        # ctypes would cut the number to 64 bits: another page's address.
        if not 0 <= gpa <= _U64_MAX:
            raise RmpViolation(gpa, vmpl, access, OUTSIDE, FAULT_RMP | FAULT_ENC)

    def _guest_code(self, result: int, gpa: int, vmpl: int, access: str) -> RmpResult:
        if result >> 31:
            covered = result & FAULT_GP or gpa < self.pages * PAGE_SIZE
            raise RmpViolation(gpa, vmpl, access, fault_reason(result) if covered else OUTSIDE, result)
        return _RESULTS[result & 0xFF]

    # Host instructions

    def rmpupdate(
        self,
        gpa: int,
        *,
        assigned: bool,
        size: PageSize = PageSize.SIZE_4K,
        immutable: bool = False,
        count: int = 1,
    ) -> tuple[RmpResult, int]:
        """RMPUPDATE of `count` pages in a row, until the first that fails; also tells how many were updated.

        This is the table alone: what becomes of the pages' content is `HostView.rmpupdate`'s.
        """
        if not 0 <= gpa <= _U64_MAX or count < 0:
            return RmpResult.FAIL_INPUT, 0
        flags = (_ASSIGNED if assigned else 0) | (_SIZE_2M if size else 0) | (_IMMUTABLE if immutable else 0)
        code = self._c.rmpupdate_range(self.address, gpa, flags, count, self._out_ref)
        return _RESULTS[code], self._out.value

    def psmash(self, gpa: int) -> RmpResult:
        """PSMASH: split a 2 MiB entry."""
        if not 0 <= gpa <= _U64_MAX:
            return RmpResult.FAIL_INPUT
        return RmpResult(self._c.psmash(self.address, gpa))

    # The secure processor

    def launch_page(
        self,
        gpa: int,
        *,
        size: PageSize = PageSize.SIZE_4K,
        vmsa: bool = False,
        permissions: tuple[int, int, int] = (0, 0, 0),
    ) -> RmpResult:
        """SNP_LAUNCH_UPDATE's effect on the table; `permissions` are those of VMPL 1, 2 and 3."""
        if not 0 <= gpa <= _U64_MAX or any(not 0 <= mask <= Permission.ALL for mask in permissions):
            return RmpResult.FAIL_INPUT
        packed = permissions[0] | permissions[1] << 8 | permissions[2] << 16
        return RmpResult(self._c.rmp_launch_page(self.address, gpa, size, vmsa, packed))

    # Snapshots

    def dump(self) -> bytes:
        """The whole table."""
        return self.entries.tobytes()

    def load(self, data: bytes) -> None:
        """Put back a table that `dump` made on a machine of the same size."""
        if len(data) != self.entries.nbytes:
            raise SnpError(f"an RMP of {self.pages} pages has {self.entries.nbytes} bytes, not {len(data)}")
        self.entries[:] = np.frombuffer(data, dtype=ENTRY_DTYPE)
        # More than are remembered: each of its entries may have changed.
        self.state[_GENERATION_WORD] += REMEMBERED + 1
