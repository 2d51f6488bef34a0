# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC's calls: what the driver asks, on which the service relies for nothing but the enclave's progress."""

from __future__ import annotations

import enum
import struct
import uuid
from typing import NamedTuple

from veil.formats.enclave_settings import ENC_NUMBER
from veil.formats.enclaves import TOP
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "CONTENT_PAGES",
    "ENC_GUID",
    "ENC_NUMBER",
    "KEPT_PAGES",
    "PAGED_AT_ONCE",
    "PAGES_MISSING",
    "PAGE_MISSING",
    "RELEASED_PAGES",
    "AddContent",
    "Created",
    "EnclaveCall",
    "Finished",
    "Reclaim",
    "Reclaimed",
    "Released",
    "Return",
]

ENC_GUID = uuid.UUID("3b7d1f60-41c5-4a0e-9f0b-5c2f8f6a1e03")

#: The most pages that one request names, so that its work is bounded: 4 MiB.
CONTENT_PAGES = 1024
#: The most that one DESTROY gives back: 16 MiB.
RELEASED_PAGES = 4096
#: So many pages that a host keeps are the loss of these alone; if there are more all that is left of the enclave waits.
KEPT_PAGES = 64
#: The most that one RECLAIM or RETURN is about: as many as one request to VeilMon moves if none lies beside another.
PAGED_AT_ONCE = 512


class EnclaveCall(enum.IntEnum):
    """What the driver asks. Enclaves are named by the number that CREATE gave them.

    Pages are by reference, the kernel's own; from the answer on the enclave has them until DESTROY.
    """

    CREATE = 0
    """A packed `Layout` -> `Created`. FULL: there are as many enclaves as there can be."""
    DONATE = 1
    """u32 enclave; pages for its page tables, slots and ZERO records; after FINISH for its pool. What they hold is
    lost. -> nothing"""
    WINDOW = 2
    """u32 enclave, u32 slot; pages, `window_pages` of them in the order of their addresses. The kernel keeps its rights
    on them. -> nothing"""
    ADD = 3
    """`AddContent`; pages with the content. In ascending order: record after record, page after page. -> nothing"""
    FINISH = 4
    """u32 enclave, when everything is there -> `Finished`. NOT_ALLOWED: content is not what the layout says."""
    SERVE = 5
    """u32 enclave, u32 slot: the service looks into that slot's mailbox -> nothing; or `PAGE_MISSING`, a page that must
    be returned first; or `PAGES_MISSING`, pages that must be donated first. Then it is asked again."""
    DESTROY = 6
    """u32 enclave -> u32 pages that it still has: ask again until there are none. What was given back is zero.
    UNAVAILABLE while a slot runs on another VCPU."""
    RECLAIM = 7
    """`Reclaim` -> `Reclaimed`: the kernel has these pages again, and in them what they held, encrypted (AES-256-GCM,
    without nonce and tag). The service chooses those that were not used for the longest time; none: all that may go are
    gone."""
    RETURN = 8
    """`Return`; as many pages, each with what RECLAIM gave for its address. NOT_ALLOWED if one holds anything else: all
    are the kernel's still, and zero. Where nothing is missing any more, the page is one more of the pool. -> nothing"""
    INTERRUPT = 9
    """u32 enclave, u32 slot: its thread comes to the runtime with its next instruction, if it is in the program; else
    the runtime has it already. -> nothing, either way"""


#: answers to SERVE: u64 address; u64 0 and u64 how many
PAGE_MISSING, PAGES_MISSING = struct.Struct("<Q"), struct.Struct("<QQ")

_ADD = struct.Struct("<IIQ")
_CREATED = struct.Struct("<IIQ")
_FINISHED_HEAD = struct.Struct("<48s")


class Created(NamedTuple):
    """`pages`: how many DONATE must bring before FINISH."""

    enclave: int
    pages: int

    def pack(self) -> bytes:
        """u32 enclave, u32 0, u64 pages."""
        return _CREATED.pack(self.enclave, 0, self.pages)


class AddContent(NamedTuple):
    """`record`: its number in the layout; `page`: the first of the pages, from the record's start."""

    enclave: int
    record: int
    page: int

    @classmethod
    def parse(cls, body: bytes) -> AddContent:
        """Raises FormatError."""
        if len(body) != _ADD.size:
            raise FormatError(f"a request to add content has {_ADD.size} bytes, not {len(body)}")
        return cls(*_ADD.unpack(body))

    def pack(self) -> bytes:
        """u32 enclave, u32 record, u64 page."""
        return _ADD.pack(*self)


class Finished(NamedTuple):
    """The measurement, and for each slot the page of its VMSA, by which the host is asked to run it."""

    measurement: bytes
    contexts: tuple[int, ...]

    def pack(self) -> bytes:
        """48 bytes, then a u64 GPA for each slot."""
        return _FINISHED_HEAD.pack(self.measurement) + struct.pack(f"<{len(self.contexts)}Q", *self.contexts)


_RECLAIM = struct.Struct("<II")
_RETURN_HEAD = struct.Struct("<II")
_RELEASED = struct.Struct("<II")


class Reclaim(NamedTuple):
    """`pages`: of an enclave, so many at most."""

    enclave: int
    pages: int

    def pack(self) -> bytes:
        """u32 enclave, u32 pages."""
        return _RECLAIM.pack(*self)

    @classmethod
    def parse(cls, body: bytes) -> Reclaim:
        """Raises FormatError."""
        if len(body) != _RECLAIM.size:
            raise FormatError(f"a request for pages has {_RECLAIM.size} bytes, not {len(body)}")
        made = cls(*_RECLAIM.unpack(body))
        if not 0 < made.pages <= PAGED_AT_ONCE:
            raise FormatError(f"1 to {PAGED_AT_ONCE} pages are taken at once, not {made.pages}")
        return made


class Reclaimed(NamedTuple):
    """Of each page: the address that it had in the enclave, the GPA."""

    pages: tuple[tuple[int, int], ...]

    def pack(self) -> bytes:
        """u64 address and u64 GPA of each."""
        numbers = [number for page in self.pages for number in page]
        return struct.pack(f"<{len(numbers)}Q", *numbers)

    @classmethod
    def parse(cls, body: bytes) -> Reclaimed:
        """What `pack` gave."""
        return cls(tuple(struct.iter_unpack("<QQ", body)))


class Released(NamedTuple):
    """The answer to DESTROY. When nothing is left and nothing is kept there is no such enclave any more."""

    left: int
    """Pages that the next requests give back."""
    kept: tuple[int, ...] = ()
    """Pages that the host does not let go: all others are the kernel's as soon as none is left."""

    def pack(self) -> bytes:
        """A header, then addresses."""
        return _RELEASED.pack(self.left, len(self.kept)) + struct.pack(f"<{len(self.kept)}Q", *self.kept)

    @classmethod
    def parse(cls, data: bytes) -> Released:
        """Raises FormatError."""
        left, count = _RELEASED.unpack_from(data) if len(data) >= _RELEASED.size else (0, -1)
        if len(data) != _RELEASED.size + 8 * count:
            raise FormatError("not an answer to DESTROY")
        return cls(left, struct.unpack_from(f"<{count}Q", data, _RELEASED.size))


class Return(NamedTuple):
    """The addresses of pages that come back, each once, below TOP."""

    enclave: int
    addresses: tuple[int, ...]

    def pack(self) -> bytes:
        """u32 enclave, u32 0, u64 address of each."""
        return _RETURN_HEAD.pack(self.enclave, 0) + struct.pack(f"<{len(self.addresses)}Q", *self.addresses)

    @classmethod
    def parse(cls, body: bytes) -> Return:
        """Raises FormatError."""
        count, rest = divmod(len(body) - _RETURN_HEAD.size, 8)
        if rest or not 0 < count <= PAGED_AT_ONCE:
            raise FormatError(f"1 to {PAGED_AT_ONCE} pages come back at once, each at an address")
        enclave, _ = _RETURN_HEAD.unpack_from(body)
        addresses = struct.unpack_from(f"<{count}Q", body, _RETURN_HEAD.size)
        if any(va % PAGE_SIZE or va >= TOP for va in addresses) or len(set(addresses)) < count:
            raise FormatError("pages come back to addresses of an enclave, each once")
        return cls(enclave, addresses)
