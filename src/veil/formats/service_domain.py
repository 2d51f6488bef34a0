# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilMon and the services' domain say to each other, once for both sides.

All of it lies in the services' region, which neither VMPL 3 nor the host can reach:

1. the mailbox, in which VeilMon asks the domain, for itself or for a remote user (`request_block`);
2. the outbox, in which the domain asks VeilMon: the last OUTBOX_SIZE bytes of the mailbox's range;
3. the block table, in which VeilMon says where each VCPU's request block is.

Only VeilMon changes what levels may do with pages; what a service may ask it for is a `GrantCall`.
"""

from __future__ import annotations

import enum
import json
import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from veil.formats.errors import FormatError
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_events import Event

__all__ = [
    "BLOCK_ENTRY",
    "COPY_PAGES",
    "MOVE_CHANGES",
    "MOVE_PAGES",
    "MOVE_RANGES",
    "OUTBOX_SIZE",
    "READ_BYTES",
    "SERVICES_DOMAIN",
    "Change",
    "CopyIn",
    "DomainCall",
    "EnclaveContext",
    "GrantCall",
    "Move",
    "ReadVirtual",
    "Restrict",
    "ServiceInfo",
    "mailbox_and_outbox",
    "pack_copy_and_move",
    "pack_description",
    "parse_copy_and_move",
    "parse_description",
]


#: The service number under which VeilMon asks the domain itself, in the mailbox only.
SERVICES_DOMAIN = 0
#: The block table's entry for a VCPU: u64 GPA, u64 size in bytes; 0, 0 without a block.
BLOCK_ENTRY = struct.Struct("<QQ")

OUTBOX_SIZE = 4 * PAGE_SIZE
#: The most that one request may name, so that its work is bounded while every VCPU waits: 4 MiB; ranges of a move.
COPY_PAGES = 1024
MOVE_RANGES = 512
#: The most that one request may read of the kernel's virtual memory.
READ_BYTES = PAGE_SIZE
#: The most pages that one request may move: 16 MiB; and changes.
MOVE_PAGES = 4096
MOVE_CHANGES = 8

_MOVE = struct.Struct("<I")
_CHANGE = struct.Struct("<HHI")
_RANGE = struct.Struct("<QQ")
_COPY = struct.Struct("<QII")
_LENGTH = struct.Struct("<I")
_RESTRICT = struct.Struct("<HHI")
_CONTEXT = struct.Struct("<Q")
_READ_VIRTUAL = struct.Struct("<IIQ")


class DomainCall(enum.IntEnum):
    """VeilMon's calls of the domain itself."""

    DESCRIBE = 0
    """-> who there is (`pack_description`)."""
    HEAR = 1
    """`service_events.Report`: what VeilMon did for the kernel. No answer."""
    ACCESS_REFUSED = 2
    """`service_events.RefusedAccess` -> `service_events.Verdict`."""


class GrantCall(enum.IntEnum):
    """The domain's calls of VeilMon, in the outbox."""

    MOVE = 0
    """`Move`: pages get other owners, and with them other rights."""
    COPY_IN = 1
    """`CopyIn`: what the kernel's pages hold, into the services' memory."""
    RESTRICT = 2
    """`Restrict`: rights that a level loses for good."""
    READ_VIRTUAL = 3
    """`ReadVirtual` -> what the kernel finds there, while its refused access is decided."""
    MAKE_VMSA = 4
    """`EnclaveContext`: a page of an enclave's, filled by the service, becomes a context of VMPL 2."""
    DROP_VMSA = 5
    """`EnclaveContext`: it is the enclave's memory again, and zero."""
    CPUID = 6
    """-> the entries of the launch's CPUID page, 0x30 bytes each."""
    LASTING_KEY = 7
    """-> 32 bytes, the same in each launch of this image with this policy on this processor. UNAVAILABLE if there is
    no way to the secure processor."""
    COPY_AND_MOVE = 8
    """u32 length of a `CopyIn`, that, a `Move`: the move if the copy is done."""


def mailbox_and_outbox(gpa: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(GPA, size) of both, from the range that the parameters name."""
    return (gpa, size - OUTBOX_SIZE), (gpa + size - OUTBOX_SIZE, OUTBOX_SIZE)


class Change(NamedTuple):
    """Ranges (GPA, size; whole pages) that `source` has and `target` gets."""

    source: Owner
    target: Owner
    ranges: Sequence[tuple[int, int]]


class Move(NamedTuple):
    """Changes of which all are made, in their order, or none."""

    changes: Sequence[Change]

    def pack(self) -> bytes:
        """As it stands in the outbox."""
        parts = [_MOVE.pack(len(self.changes))]
        for change in self.changes:
            parts.append(_CHANGE.pack(change.source, change.target, len(change.ranges)))
            parts += [_RANGE.pack(*item) for item in change.ranges]
        return b"".join(parts)

    @classmethod
    def parse(cls, body: bytes) -> Move:
        """Raises FormatError for anything but distinct whole pages: MOVE_CHANGES, MOVE_RANGES and 16 MiB at most."""
        (count,) = _unpack(_MOVE, body)
        if not 0 < count <= MOVE_CHANGES:
            raise FormatError(f"a move has 1 to {MOVE_CHANGES} changes, not {count}")
        changes, named, at = list[Change](), list[tuple[int, int]](), _MOVE.size
        for _ in range(count):
            source, target, number = _unpack(_CHANGE, body[at : at + _CHANGE.size])
            at += _CHANGE.size
            end = at + number * _RANGE.size
            if not 0 < number <= MOVE_RANGES or end > len(body):
                raise FormatError(f"a move names 1 to {MOVE_RANGES} ranges, not {number}")
            ranges = list(_RANGE.iter_unpack(body[at:end]))
            changes.append(Change(_owner(source), _owner(target), ranges))
            named += ranges
            at = end
        if at != len(body):
            raise FormatError(f"a move has {len(body) - at} bytes too many")
        _check_ranges(sorted(named))
        return cls(changes)


def _check_ranges(ranges: Sequence[tuple[int, int]]) -> None:
    end = total = 0
    for gpa, size in ranges:
        if (gpa | size) % PAGE_SIZE or not size or gpa < end:
            raise FormatError(f"the range {gpa:#x}+{size:#x} of a move is not one of whole pages, named once")
        end = gpa + size
        total += size
    if len(ranges) > MOVE_RANGES or total > MOVE_PAGES * PAGE_SIZE:
        raise FormatError(f"a move is of {MOVE_RANGES} ranges and {MOVE_PAGES} pages at most")


class CopyIn(NamedTuple):
    """The first `length` bytes of these pages of the kernel's, to `target` in the services' memory."""

    target: int
    length: int
    pages: Sequence[int]

    def pack(self) -> bytes:
        """As it stands in the outbox."""
        return _COPY.pack(self.target, self.length, len(self.pages)) + struct.pack(f"<{len(self.pages)}Q", *self.pages)

    @classmethod
    def parse(cls, body: bytes) -> CopyIn:
        """Raises FormatError for anything but whole pages, COPY_PAGES at most, that hold `length` bytes."""
        target, length, count = _unpack(_COPY, body)
        if not 0 < count <= COPY_PAGES or len(body) != _COPY.size + count * 8:
            raise FormatError(f"a copy names 1 to {COPY_PAGES} pages, not {count}")
        pages = struct.unpack_from(f"<{count}Q", body, _COPY.size)
        if reduce(or_, pages) % PAGE_SIZE or not (count - 1) * PAGE_SIZE < length <= count * PAGE_SIZE:
            raise FormatError(f"{count} pages of a copy do not hold {length} bytes")
        return cls(target, length, pages)


def pack_copy_and_move(copy: CopyIn, move: Move) -> bytes:
    """The body of COPY_AND_MOVE."""
    first = copy.pack()
    return _LENGTH.pack(len(first)) + first + move.pack()


def parse_copy_and_move(body: bytes) -> tuple[CopyIn, Move]:
    """Raises FormatError."""
    (length,) = _unpack(_LENGTH, body)
    end = _LENGTH.size + length
    return CopyIn.parse(body[_LENGTH.size : end]), Move.parse(body[end:])


@dataclass(frozen=True)
class Restrict:
    """`vmpl` keeps, of what it may do with pages of `owner`, at most `keep` (RMPADJUST's bits), for good."""

    owner: Owner
    vmpl: int
    keep: int

    def pack(self) -> bytes:
        """As it stands in the outbox."""
        return _RESTRICT.pack(self.owner, self.vmpl, self.keep)

    @classmethod
    def parse(cls, body: bytes) -> Restrict:
        """Raises FormatError for what is not a VMPL below the services', or not permissions."""
        owner, vmpl, keep = _unpack(_RESTRICT, body)
        if len(body) != _RESTRICT.size or vmpl not in (2, 3) or keep > 0xF:
            raise FormatError("a restriction names an owner, VMPL 2 or 3, and permissions")
        return cls(_owner(owner), vmpl, keep)


@dataclass(frozen=True)
class ReadVirtual:
    """`length` bytes at a virtual address of the context of VMPL 3 on a VCPU (APIC ID), whose access was refused."""

    vcpu: int
    address: int
    length: int

    def pack(self) -> bytes:
        """As it stands in the outbox."""
        return _READ_VIRTUAL.pack(self.vcpu, self.length, self.address)

    @classmethod
    def parse(cls, body: bytes) -> ReadVirtual:
        """Raises FormatError for more than READ_BYTES, or none."""
        vcpu, length, address = _unpack(_READ_VIRTUAL, body)
        if len(body) != _READ_VIRTUAL.size or not 0 < length <= READ_BYTES:
            raise FormatError(f"1 to {READ_BYTES} bytes are read at once, not {length}")
        return cls(vcpu, address, length)


@dataclass(frozen=True)
class EnclaveContext:
    """A context of VMPL 2. Its page is its name; it runs on each VCPU."""

    gpa: int

    def pack(self) -> bytes:
        """As it stands in the outbox."""
        return _CONTEXT.pack(self.gpa)

    @classmethod
    def parse(cls, body: bytes) -> EnclaveContext:
        """Raises FormatError for anything but a page."""
        (gpa,) = _unpack(_CONTEXT, body)
        if len(body) != _CONTEXT.size or gpa % PAGE_SIZE:
            raise FormatError(f"a context is one page, not {gpa:#x}")
        return cls(gpa)


def _unpack(shape: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < shape.size:
        raise FormatError(f"a request in the outbox is cut short: {len(body)} bytes")
    return shape.unpack_from(body)


_OWNERS = {owner.value: owner for owner in Owner}


def _owner(number: int) -> Owner:
    owner = _OWNERS.get(number)
    if owner is None:
        raise FormatError(f"there is no owner {number}")
    return owner


@dataclass(frozen=True)
class ServiceInfo:
    """A service as it describes itself at boot."""

    name: str
    number: int
    guid: uuid.UUID
    manifest: bytes
    hears: frozenset[Event] = frozenset()
    """Of what it is told."""
    guards: frozenset[Owner] = frozenset()
    """Of whose pages it is asked about refused accesses."""

    def dump(self) -> dict[str, Any]:
        """For JSON: the description, a snapshot."""
        return {
            "name": self.name,
            "number": self.number,
            "guid": str(self.guid),
            "manifest": self.manifest.hex(),
            "hears": sorted(self.hears),
            "guards": sorted(self.guards),
        }

    @classmethod
    def load(cls, state: dict[str, Any]) -> ServiceInfo:
        """Take back what `dump` gave; raises ValueError, KeyError or TypeError."""
        return cls(
            state["name"],
            state["number"],
            uuid.UUID(state["guid"]),
            bytes.fromhex(state["manifest"]),
            frozenset(map(Event, state["hears"])),
            frozenset(map(Owner, state["guards"])),
        )


def pack_description(services: Iterable[ServiceInfo]) -> bytes:
    """The answer to DESCRIBE: JSON."""
    return json.dumps([service.dump() for service in services]).encode()


def parse_description(body: bytes) -> list[ServiceInfo]:
    """Raises ValueError, KeyError or TypeError for what is not a description."""
    return [ServiceInfo.load(item) for item in json.loads(body)]
