# SPDX-License-Identifier: GPL-2.0-or-later
"""Request blocks between domains (the paper's IDCBs): how the kernel and VeilMon ask the protected services.

A block lies in memory of the less privileged party. Who asks writes header and body, sets `pending`, and has the host
run the services' domain on the same VCPU. That domain copies the request once and writes the answer over it, which
clears `pending`; a request that it cannot serve, because the host took pages away, stays pending. The kernel's blocks
are its own memory; VeilMon's is the mailbox, which the kernel cannot reach.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Role
from veil.formats.status import Status

__all__ = [
    "BLOCK_HEADER",
    "BlockMemory",
    "BlockRequest",
    "read_answer",
    "take_request",
    "write_answer",
    "write_request",
]

#: u32 pending, u32 status (of the answer), u16 service, u16 call, u32 length of the body; then, in the mailbox only,
#: u32 VCPU, u16 whether the user who asks has a key, u16 `Role` of that user, 32 bytes fingerprint of his key. The body
#: follows at BLOCK_HEADER.
_REQUEST = struct.Struct("<IIHHIIHH32s")
_ANSWER = struct.Struct("<IIHHI")
BLOCK_HEADER = 0x40
#: what is copied with the header: most requests are no longer than the rest of their first page
_FIRST = PAGE_SIZE
assert _REQUEST.size <= BLOCK_HEADER

_ROLES = {role.value: role for role in Role}


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


def write_request(memory: BlockMemory, gpa: int, size: int, request: BlockRequest) -> None:
    """Put a request in, pending. Raises FormatError if it is too long for a block of `size` bytes."""
    if len(request.body) > size - BLOCK_HEADER:
        raise FormatError(f"a request of {len(request.body)} bytes does not fit into a block of {size}")
    memory.write(gpa + BLOCK_HEADER, request.body)
    header = _REQUEST.pack(
        1, 0, request.service, request.call, len(request.body), request.vcpu,
        request.user_key is not None, request.role, request.user_key or bytes(32),
    )  # fmt: skip
    memory.write(gpa, header)


def take_request(memory: BlockMemory, gpa: int, size: int) -> BlockRequest | None:
    """The request that waits, copied once; None if none does. It stays pending until `write_answer`.

    Raises FormatError for one that cannot be: its writer may be anybody, and may change it while it is copied.
    """
    first = memory.read(gpa, _FIRST if size > _FIRST else size)
    pending, _, service, call, length, vcpu, has_key, role, key = _REQUEST.unpack_from(first)
    if not pending:
        return None
    end = BLOCK_HEADER + length
    if end > size:
        raise FormatError(f"a request of {length} bytes in a block of {size}")
    body = first[BLOCK_HEADER:end]
    if end > _FIRST:
        body += memory.read(gpa + _FIRST, end - _FIRST)
    # In a kernel's block these may be anything, and say nothing.
    return BlockRequest(service, call, body, vcpu, key if has_key else None, _ROLES.get(role, Role.ANYONE))


def write_answer(memory: BlockMemory, gpa: int, size: int, status: Status, body: bytes = b"") -> None:
    """Put an answer in; the request is no longer pending. Raises FormatError if it does not fit."""
    if len(body) > size - BLOCK_HEADER:
        raise FormatError(f"an answer of {len(body)} bytes does not fit into a block of {size}")
    if body:
        memory.write(gpa + BLOCK_HEADER, body)
    memory.write(gpa, _ANSWER.pack(0, status, 0, 0, len(body)))


def read_answer(memory: BlockMemory, gpa: int, size: int) -> tuple[Status, bytes] | None:
    """(status, body) of the answer; None while the request is still pending."""
    pending, status, _, _, length = _ANSWER.unpack(memory.read(gpa, _ANSWER.size))
    if pending:
        return None
    if status not in set(Status) or length > size - BLOCK_HEADER:
        raise FormatError(f"an answer of {length} bytes with status {status} in a block of {size}")
    return Status(status), memory.read(gpa + BLOCK_HEADER, length)
