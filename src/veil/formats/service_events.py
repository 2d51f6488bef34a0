# SPDX-License-Identifier: GPL-2.0-or-later
"""What services hear of VMPL 3 from VeilMon, and what they may answer; all of it passes through the mailbox.

What was done already is told (`Report`): pages that the kernel took or gave back, VCPUs that it made or deleted. An
access that the RMP refused is asked about (`RefusedAccess`, `Verdict`): the VCPU stands still until the answer.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from veil.formats.errors import FormatError
from veil.formats.nested_faults import NestedFault
from veil.formats.page_owners import Owner

__all__ = [
    "MAX_HEARD",
    "VECTOR_GP",
    "VECTOR_PF",
    "Decision",
    "Event",
    "Heard",
    "RefusedAccess",
    "Registers",
    "Report",
    "Verdict",
]

#: The most events in one report: one PVALIDATE call of the kernel's has 511 at most.
MAX_HEARD = 1024

VECTOR_GP, VECTOR_PF = 13, 14

_HEARD = struct.Struct("<HHIQQ")
_REPORT = struct.Struct("<II")
_REGISTERS = struct.Struct("<26Q")
_ACCESS = struct.Struct("<IIQQQ")
_VERDICT = struct.Struct("<IIIIQ")
_KINDS = NestedFault.WRITE | NestedFault.FETCH | NestedFault.FINAL | NestedFault.TABLE


class Event(enum.IntEnum):
    """What VeilMon did because the kernel asked for it."""

    PAGES_TAKEN = 0
    """The kernel had pages validated, and has all rights that its row gives."""
    PAGES_GIVEN = 1
    """The kernel gave pages back: they are not validated any more, and may become the host's."""
    VCPU_CREATED = 2
    """A page became a context of VMPL 3."""
    VCPU_DELETED = 3
    """It is ordinary memory again."""


class Heard(NamedTuple):
    """One event. `vcpu`: the APIC ID of the one that asked or, of a context, the one that has it."""

    event: Event
    vcpu: int
    gpa: int
    size: int


@dataclass(frozen=True)
class Report:
    """Events in the order in which they happened. `lost`: how many more there were, for which there was no room."""

    events: Sequence[Heard]
    lost: int = 0

    def pack(self) -> bytes:
        """As it stands in the mailbox."""
        head = _REPORT.pack(len(self.events), self.lost)
        return head + b"".join(_HEARD.pack(item.event, 0, *item[1:]) for item in self.events)

    @classmethod
    def parse(cls, body: bytes) -> Report:
        """Raises FormatError."""
        if len(body) < _REPORT.size:
            raise FormatError(f"a report of events is cut short: {len(body)} bytes")
        count, lost = _REPORT.unpack_from(body)
        if count > MAX_HEARD or len(body) != _REPORT.size + count * _HEARD.size:
            raise FormatError(f"a report of {len(body)} bytes says that it has {count} events")
        try:
            events = [
                Heard(Event(event), vcpu, gpa, size)
                for event, _, vcpu, gpa, size in _HEARD.iter_unpack(body[_REPORT.size :])
            ]
        except ValueError as error:
            raise FormatError(f"a report of events: {error}") from error
        return cls(events, lost)


@dataclass(frozen=True)
class Registers:
    """What decoding an instruction and finding its operands takes, of a VMSA. `gprs`: RAX, RCX, RDX, RBX, RSP, RBP,
    RSI, RDI, R8 to R15, in the order of their numbers in instructions."""

    gprs: tuple[int, ...]
    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    fs_base: int
    gs_base: int
    cpl: int

    def pack(self) -> bytes:
        """208 bytes."""
        return _REGISTERS.pack(
            *self.gprs, self.rip, self.rflags, self.cr0, self.cr2, self.cr3, self.cr4, self.efer, self.fs_base,
            self.gs_base, self.cpl,
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Registers:
        """Raises FormatError."""
        if len(data) != _REGISTERS.size:
            raise FormatError(f"registers have {_REGISTERS.size} bytes, not {len(data)}")
        *gprs, rip, rflags, cr0, cr2, cr3, cr4, efer, fs_base, gs_base, cpl = _REGISTERS.unpack(data)
        return cls(tuple(gprs), rip, rflags, cr0, cr2, cr3, cr4, efer, fs_base, gs_base, cpl)


@dataclass(frozen=True)
class RefusedAccess:
    """An access of VMPL 3 that the RMP refused, as the hardware saved it in the VMSA."""

    vcpu: int
    """APIC ID."""
    vmsa: int
    gpa: int
    """EXITINFO2."""
    info: int
    """EXITINFO1: `NestedFault`."""
    owner: Owner
    """Of the page at `gpa`."""
    registers: Registers

    @property
    def access(self) -> NestedFault:
        """What kind of access it was: WRITE, FETCH, and FINAL or TABLE."""
        return NestedFault(self.info) & _KINDS

    def resume(self, **changed: int | tuple[int, ...]) -> Verdict:
        """The kernel goes on, with some registers changed: `gprs`, `rip`, `rflags`."""
        return Verdict(Decision.RESUME, registers=replace(self.registers, **changed))  # type: ignore[arg-type]

    def pack(self) -> bytes:
        """As it stands in the mailbox."""
        head = _ACCESS.pack(self.vcpu, self.owner, self.vmsa, self.gpa, self.info)
        return head + self.registers.pack()

    @classmethod
    def parse(cls, body: bytes) -> RefusedAccess:
        """Raises FormatError."""
        if len(body) != _ACCESS.size + _REGISTERS.size:
            raise FormatError(f"a refused access of {len(body)} bytes")
        vcpu, owner, vmsa, gpa, info = _ACCESS.unpack_from(body)
        if owner not in set(Owner):
            raise FormatError(f"there is no owner {owner}")
        return cls(vcpu, vmsa, gpa, info, Owner(owner), Registers.parse(body[_ACCESS.size :]))


class Decision(enum.IntEnum):
    """What becomes of a VCPU whose access was refused."""

    REFUSE = 0
    """It never goes on."""
    RESUME = 1
    """It goes on with the registers of the verdict: RIP, RFLAGS and the general ones count, the others are as before.
    What the instruction was to do, the service has done."""
    INJECT = 2
    """It goes on with an exception, which a kernel may survive."""


@dataclass(frozen=True)
class Verdict:
    """A service's answer to a `RefusedAccess`."""

    decision: Decision
    registers: Registers | None = field(default=None)
    """With RESUME."""
    vector: int = 0
    """With INJECT: VECTOR_GP or VECTOR_PF."""
    error_code: int = 0
    address: int = 0
    """With INJECT of #PF: CR2."""

    @classmethod
    def refuse(cls) -> Verdict:
        """The VCPU never goes on."""
        return cls(Decision.REFUSE)

    @classmethod
    def inject(cls, vector: int = VECTOR_GP, error_code: int = 0, address: int = 0) -> Verdict:
        """The VCPU goes on with #GP or #PF, at the instruction whose access was refused."""
        return cls(Decision.INJECT, None, vector, error_code, address)

    def pack(self) -> bytes:
        """As it stands in the mailbox."""
        head = _VERDICT.pack(self.decision, self.vector, self.error_code, 0, self.address)
        return head + (self.registers.pack() if self.registers is not None else b"")

    @classmethod
    def parse(cls, body: bytes) -> Verdict:
        """Raises FormatError for anything but a decision with what belongs to it."""
        if len(body) < _VERDICT.size:
            raise FormatError(f"a verdict is cut short: {len(body)} bytes")
        number, vector, error_code, _, address = _VERDICT.unpack_from(body)
        rest = body[_VERDICT.size :]
        if number not in set(Decision):
            raise FormatError(f"there is no decision {number}")
        decision = Decision(number)
        if bool(rest) != (decision is Decision.RESUME):
            raise FormatError(f"a verdict {decision.name} with {len(rest)} bytes of registers")
        if decision is Decision.INJECT and vector not in (VECTOR_GP, VECTOR_PF):
            raise FormatError(f"the exception {vector} cannot be injected")
        return cls(decision, Registers.parse(rest) if rest else None, vector, error_code, address)
