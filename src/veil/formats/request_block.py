# SPDX-License-Identifier: GPL-2.0-or-later
"""Request blocks between domains (the paper's IDCBs): how the kernel and VeilMon ask the protected services.

A block lies in memory of the less privileged party. Who asks writes header and body, sets `pending`, and has the host
run the services' domain on the same VCPU. That domain copies the request once and writes the answer over it, which
clears `pending`; a request that it cannot serve, because the host took pages away, stays pending. The kernel's blocks
are its own memory; VeilMon's is the mailbox, which the kernel cannot reach.
"""

from __future__ import annotations

import struct
from functools import reduce
from operator import or_
from typing import NamedTuple, Protocol

from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Role
from veil.formats.status import Status

__all__ = [
    "BLOCK_HEADER",
    "BLOCK_START",
    "BlockMemory",
    "BlockRequest",
    "read_answer",
    "take_request",
    "waiting_ticket",
    "write_answer",
    "write_request",
]

#: u32 pending, u32 status (of the answer), u16 service, u16 call, u32 length of the body; then, in the mailbox only,
#: u32 VCPU, u16 whether the user who asks has a key, u16 `Role` of that user, 32 bytes fingerprint of that key; then
#: u32 number of pages by reference, u32 ticket. At BLOCK_HEADER follow a u64 GPA for each page, then the body; the
#: length is that of both.
_REQUEST = struct.Struct("<IIHHIIHH32sII")
#: the first five; all that an answer has
BLOCK_START = struct.Struct("<IIHHI")
BLOCK_HEADER = 0x40
#: what is copied with the header: most requests are no longer than the rest of their first page
_FIRST = PAGE_SIZE
assert _REQUEST.size == BLOCK_HEADER

_ROLES = {role.value: role for role in Role}
_STATUSES = {status.value: status for status in Status}


class BlockMemory(Protocol):
    """A view."""

    def read(self, gpa: int, length: int, /) -> bytes: ...

    def write(self, gpa: int, data: bytes, /) -> None: ...


class BlockRequest(NamedTuple):
    """A request, copied out of its block. `user_key` and `role` mean something in the mailbox alone."""

    service: int
    call: int
    body: bytes
    vcpu: int = 0
    user_key: bytes | None = None
    role: Role = Role.ANYONE
    pages: tuple[int, ...] = ()
    """GPAs of pages that the request is about, as its writer names them: page aligned, none twice."""
    ticket: int = 0
    """By which its writer tells it from an earlier one that was not answered in time."""


def write_request(memory: BlockMemory, gpa: int, size: int, request: BlockRequest) -> None:
    """Put a request in, pending. Raises FormatError if it is too long for a block of `size` bytes."""
    body = request.body
    if request.pages:
        body = struct.pack(f"<{len(request.pages)}Q", *request.pages) + body
    if len(body) > size - BLOCK_HEADER:
        raise FormatError(f"a request of {len(body)} bytes does not fit into a block of {size}")
    memory.write(gpa + BLOCK_HEADER, body)
    header = _REQUEST.pack(
        1, 0, request.service, request.call, len(body), request.vcpu,
        request.user_key is not None, request.role, request.user_key or bytes(32), len(request.pages), request.ticket,
    )  # fmt: skip
    memory.write(gpa, header)


def take_request(memory: BlockMemory, gpa: int, size: int) -> BlockRequest | None:
    """The request that waits, copied once; None if none does. It stays pending until `write_answer`.

    Raises FormatError for one that cannot be: its writer may be anybody, and may change it while it is copied.
    """
    first = memory.read(gpa, _FIRST if size > _FIRST else size)
    pending, _, service, call, length, vcpu, has_key, role, key, count, ticket = _REQUEST.unpack_from(first)
    if not pending:
        return None
    end = BLOCK_HEADER + length
    if end > size:
        raise FormatError(f"a request of {length} bytes in a block of {size}")
    if count * 8 > length:
        raise FormatError(f"a request of {length} bytes names {count} pages")
    body = first[BLOCK_HEADER:end]
    if end > _FIRST:
        body += memory.read(gpa + _FIRST, end - _FIRST)
    # In a kernel's block these may be anything, and say nothing.
    asker = (vcpu, key if has_key else None, _ROLES.get(role, Role.ANYONE))
    pages: tuple[int, ...] = ()
    if count:
        pages = struct.unpack_from(f"<{count}Q", body)
        if reduce(or_, pages) % PAGE_SIZE or len(set(pages)) < count:
            raise FormatError("pages by reference are whole pages, each named once")
    return BlockRequest(service, call, body[count * 8 :], *asker, pages, ticket)


def waiting_ticket(memory: BlockMemory, gpa: int) -> tuple[int, int] | None:
    """(VCPU, ticket) of the request that waits, as its writer says; None if none does."""
    pending, _, _, _, _, vcpu, _, _, _, _, ticket = _REQUEST.unpack(memory.read(gpa, _REQUEST.size))
    return (vcpu, ticket) if pending else None


def write_answer(memory: BlockMemory, gpa: int, size: int, status: Status, body: bytes = b"") -> None:
    """Put an answer in; the request is no longer pending. Raises FormatError if it does not fit."""
    if len(body) > size - BLOCK_HEADER:
        raise FormatError(f"an answer of {len(body)} bytes does not fit into a block of {size}")
    if body:
        memory.write(gpa + BLOCK_HEADER, body)
    memory.write(gpa, BLOCK_START.pack(0, status, 0, 0, len(body)))


def read_answer(memory: BlockMemory, gpa: int, size: int) -> tuple[Status, bytes] | None:
    """(status, body) of the answer; None while the request is still pending."""
    pending, status, _, _, length = BLOCK_START.unpack(memory.read(gpa, BLOCK_START.size))
    if pending:
        return None
    if status not in _STATUSES or length > size - BLOCK_HEADER:
        raise FormatError(f"an answer of {length} bytes with status {status} in a block of {size}")
    return _STATUSES[status], memory.read(gpa + BLOCK_HEADER, length) if length else b""
