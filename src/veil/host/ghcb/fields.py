# SPDX-License-Identifier: GPL-2.0-or-later
"""The GHCB page, as the host reads and answers it (56421, section 3 "GHCB Layout").

This is the host's busiest path: one copy of the page, one `struct` call for the fields that every event has, and as
few writes as the answer allows.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from veil.formats.ghcb import SHARED_BUFFER, SHARED_BUFFER_END, GhcbField, GhcbReason, valid_bit
from veil.formats.page_sizes import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.interfaces import HostMemory

__all__ = ["MAX_SCRATCH", "VERSION_MAX", "VERSION_MIN", "VERSION_UNSET", "GhcbFault", "GhcbPage", "InjectException"]

#: Versions of the protocol that the host speaks.
VERSION_MIN = 1
VERSION_MAX = 2
#: What a page may say beside these: edk2 leaves the field zero until it has asked which versions there are. KVM does
#: not look at it.
VERSION_UNSET = 0

#: The largest scratch area outside of the GHCB page, KVM's bound.
MAX_SCRATCH = 16 * PAGE_SIZE

# Plain numbers: looking a name up in an enumeration takes longer than what is done with it here.
_CPL = int(GhcbField.CPL)
_RAX = int(GhcbField.RAX)
_RCX = int(GhcbField.RCX)
_RDX = int(GhcbField.RDX)
_RBX = int(GhcbField.RBX)
_EXIT_CODE = int(GhcbField.SW_EXITCODE)
_EXIT_INFO_1 = int(GhcbField.SW_EXITINFO1)
_SCRATCH = int(GhcbField.SW_SCRATCH)
_VALID_BITMAP = int(GhcbField.VALID_BITMAP)
_VERSION = int(GhcbField.PROTOCOL_VERSION)

# SW_EXITCODE, SW_EXITINFO1, SW_EXITINFO2, SW_SCRATCH, XCR0 and the two halves of VALID_BITMAP.
_EXIT_FIELDS = struct.Struct("<4Q56x3Q")
_TRAILER = struct.Struct("<HI")
_TWO = struct.Struct("<2Q")
_ONE = struct.Struct("<Q")


_BIT_CPL = valid_bit(_CPL)
_BIT_RAX = valid_bit(_RAX)
_BIT_RCX = valid_bit(_RCX)
_BIT_RDX = valid_bit(_RDX)
_BIT_RBX = valid_bit(_RBX)
_BIT_SCRATCH = valid_bit(_SCRATCH)
_BIT_XCR0 = valid_bit(GhcbField.XCR0)
_BITS_ANSWER = valid_bit(_EXIT_INFO_1) | valid_bit(GhcbField.SW_EXITINFO2)
_BITS_REQUIRED = valid_bit(_EXIT_CODE) | _BITS_ANSWER

_MASK_64 = (1 << 64) - 1


class GhcbFault(Exception):
    """The request is malformed: SW_EXITINFO1 is 2."""

    def __init__(self, reason: GhcbReason) -> None:
        self.reason = reason
        super().__init__(reason.name)


class InjectException(Exception):
    """The guest shall take #GP or #UD for the instruction: SW_EXITINFO1 is 1."""

    def __init__(self, vector: int, error_code: int | None = None) -> None:
        self.vector = vector
        self.error_code = error_code
        super().__init__(vector)


class GhcbPage:
    """One request, copied from the page, and the answer to it.

    Inputs are checked against VALID_BITMAP as they are used.
    """

    __slots__ = (
        "_bits",
        "_outputs",
        "exit_code",
        "exit_info_1",
        "exit_info_2",
        "gpa",
        "may_use",
        "raw",
        "result2",
        "scratch",
        "view",
        "xcr0",
    )  # fmt: skip

    exit_code: int
    exit_info_1: int
    exit_info_2: int
    scratch: int
    xcr0: int

    def __init__(self, view: HostMemory, gpa: int, may_use: Callable[[int, int], bool]) -> None:
        """`may_use`: is a range shared memory that who asks may name?"""
        self.view = view
        self.may_use = may_use
        self.gpa = gpa
        self.raw = raw = view.read(gpa, PAGE_SIZE)
        fields = _EXIT_FIELDS.unpack_from(raw, _EXIT_CODE)
        self.exit_code, self.exit_info_1, self.exit_info_2, self.scratch, self.xcr0, low, high = fields
        self._bits: int = low | high << 64
        self._outputs: list[tuple[int, int]] | None = None
        #: SW_EXITINFO2 of a successful answer
        self.result2 = 0

    # Inputs

    def check_header(self) -> None:
        """What must hold for every event."""
        version, usage = _TRAILER.unpack_from(self.raw, _VERSION)
        if usage:
            raise GhcbFault(GhcbReason.INVALID_USAGE)
        if self._bits & _BITS_REQUIRED != _BITS_REQUIRED:
            raise GhcbFault(GhcbReason.MISSING_INPUT)
        if not VERSION_UNSET <= version <= VERSION_MAX:
            raise GhcbFault(GhcbReason.INVALID_INPUT)

    def _register(self, offset: int, bit: int) -> int:
        if not self._bits & bit:
            raise GhcbFault(GhcbReason.MISSING_INPUT)
        value: int = _ONE.unpack_from(self.raw, offset)[0]
        return value

    @property
    def rax(self) -> int:
        """RAX, required."""
        return self._register(_RAX, _BIT_RAX)

    @property
    def rbx(self) -> int:
        """RBX, required."""
        return self._register(_RBX, _BIT_RBX)

    @property
    def rcx(self) -> int:
        """RCX, required."""
        return self._register(_RCX, _BIT_RCX)

    @property
    def rdx(self) -> int:
        """RDX, required."""
        return self._register(_RDX, _BIT_RDX)

    @property
    def cpl(self) -> int:
        """CPL, required."""
        if not self._bits & _BIT_CPL:
            raise GhcbFault(GhcbReason.MISSING_INPUT)
        return self.raw[_CPL]

    def need_xcr0(self) -> int:
        """XCR0, required."""
        if not self._bits & _BIT_XCR0:
            raise GhcbFault(GhcbReason.MISSING_INPUT)
        return self.xcr0

    def scratch_area(self, length: int) -> int:
        """The address of the scratch area, good for `length` bytes.

        In the GHCB page it must lie within the shared buffer: an area over the save area would let an answer's data
        overwrite the answer. Elsewhere it must be shared memory: the host cannot use private pages, and must not be
        talked into reading ciphertext as data. And it must not be a more privileged level's: the host would write
        over what VeilMon says, or hears.
        """
        if not self._bits & _BIT_SCRATCH:
            raise GhcbFault(GhcbReason.MISSING_INPUT)
        start = self.scratch
        if start & -PAGE_SIZE == self.gpa:
            offset = start - self.gpa
            if offset < SHARED_BUFFER or offset + length > SHARED_BUFFER_END:
                raise GhcbFault(GhcbReason.INVALID_SCRATCH_AREA)
        elif not start or length > MAX_SCRATCH or not self.may_use(start, length):
            raise GhcbFault(GhcbReason.INVALID_SCRATCH_AREA)
        return start

    def scratch_read(self, length: int) -> bytes:
        """A copy of the scratch area's first bytes."""
        start = self.scratch_area(length)
        if start & -PAGE_SIZE == self.gpa:
            offset = start - self.gpa
            return self.raw[offset : offset + length]
        return self.view.read(start, length) if length else b""

    # The answer

    def _output(self, offset: int, bit: int, value: int) -> None:
        if self._outputs is None:
            self._outputs = []
            self._bits = 0
        self._outputs.append((offset, value & _MASK_64))
        self._bits |= bit

    def set_rax(self, value: int) -> None:
        """RAX of the answer. Reading inputs ends with the first output."""
        self._output(_RAX, _BIT_RAX, value)

    def set_rbx(self, value: int) -> None:
        """RBX of the answer."""
        self._output(_RBX, _BIT_RBX, value)

    def set_rcx(self, value: int) -> None:
        """RCX of the answer."""
        self._output(_RCX, _BIT_RCX, value)

    def set_rdx(self, value: int) -> None:
        """RDX of the answer."""
        self._output(_RDX, _BIT_RDX, value)

    def finish(self, result1: int = 0, result2: int = 0) -> None:
        """Write the answer: the registers set, SW_EXITINFO1 and 2, and which of them are valid."""
        bits = _BITS_ANSWER
        view, gpa, raw = self.view, self.gpa, self.raw
        if self._outputs is not None and result1 == 0:
            bits |= self._bits
            for offset, value in self._outputs:
                view.write(gpa + offset, _ONE.pack(value))
        # One write over SW_EXITINFO1 to VALID_BITMAP: what lies between keeps the guest's values.
        view.write(
            gpa + _EXIT_INFO_1,
            _TWO.pack(result1, result2) + raw[_SCRATCH:_VALID_BITMAP] + _TWO.pack(bits & _MASK_64, bits >> 64),
        )
