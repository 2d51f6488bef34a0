# SPDX-License-Identifier: GPL-2.0-or-later
"""Request blocks between domains (the paper's IDCBs): how the kernel and VeilMon ask the protected services.

A block lies in memory of the less privileged party. Who asks writes header and body, sets `pending`, and has the host
run the services' domain on the same VCPU. That domain clears `pending`, copies the request once, and writes the answer
over it; a request that it cannot serve, because the host took pages away, it makes pending again. The kernel's blocks
are its own memory; VeilMon's is the mailbox, which the kernel cannot reach.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

from veil.formats.channel import Status
from veil.formats.errors import FormatError

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
#: u32 VCPU, u32 flags and 32 bytes fingerprint of the user who asks. The body follows at BLOCK_HEADER.
_PENDING = struct.Struct("<I")
_REQUEST = struct.Struct("<IIHHIII32s")
_ANSWER = struct.Struct("<IHHI")
BLOCK_HEADER = 0x40
assert _REQUEST.size <= BLOCK_HEADER

_FLAG_USER_KEY = 1
_FLAG_OWNER = 2


class BlockMemory(Protocol):
    """A view."""

    def read(self, gpa: int, length: int, /) -> bytes: ...

    def write(self, gpa: int, data: bytes, /) -> None: ...

    def write_u32(self, gpa: int, value: int, /) -> None: ...


class BlockRequest(NamedTuple):
    """A request, copied out of its block. `user_key` and `is_owner` mean something in the mailbox alone."""

    service: int
    call: int
    body: bytes
    vcpu: int = 0
    user_key: bytes | None = None
    is_owner: bool = False


def write_request(memory: BlockMemory, gpa: int, size: int, request: BlockRequest) -> None:
    """Put a request in, pending. Raises FormatError if it is too long for a block of `size` bytes."""
    if len(request.body) > size - BLOCK_HEADER:
        raise FormatError(f"a request of {len(request.body)} bytes does not fit into a block of {size}")
    flags = (_FLAG_USER_KEY if request.user_key is not None else 0) | (_FLAG_OWNER if request.is_owner else 0)
    memory.write(gpa + BLOCK_HEADER, request.body)
    header = _REQUEST.pack(
        1, 0, request.service, request.call, len(request.body), request.vcpu, flags, request.user_key or bytes(32)
    )
    memory.write(gpa, header)


def take_request(memory: BlockMemory, gpa: int, size: int) -> BlockRequest | None:
    """The request that waits, copied once, and no longer pending; None if none does.

    Raises FormatError for one that cannot be: its writer may be anybody, and may change it while it is copied.
    """
    pending, _, service, call, length, vcpu, flags, key = _REQUEST.unpack(memory.read(gpa, _REQUEST.size))
    if not pending:
        return None
    memory.write_u32(gpa, 0)
    if length > size - BLOCK_HEADER:
        raise FormatError(f"a request of {length} bytes in a block of {size}")
    body = memory.read(gpa + BLOCK_HEADER, length) if length else b""
    return BlockRequest(
        service, call, body, vcpu, key if flags & _FLAG_USER_KEY else None, bool(flags & _FLAG_OWNER)
    )


def write_answer(memory: BlockMemory, gpa: int, size: int, status: Status, body: bytes = b"") -> None:
    """Put an answer in. Raises FormatError if it does not fit."""
    if len(body) > size - BLOCK_HEADER:
        raise FormatError(f"an answer of {len(body)} bytes does not fit into a block of {size}")
    if body:
        memory.write(gpa + BLOCK_HEADER, body)
    memory.write(gpa + _PENDING.size, _ANSWER.pack(status, 0, 0, len(body)))


def read_answer(memory: BlockMemory, gpa: int, size: int) -> tuple[Status, bytes] | None:
    """(status, body) of the answer; None while the request is still pending."""
    if _PENDING.unpack(memory.read(gpa, _PENDING.size))[0]:
        return None
    status, _, _, length = _ANSWER.unpack(memory.read(gpa + _PENDING.size, _ANSWER.size))
    if status not in set(Status) or length > size - BLOCK_HEADER:
        raise FormatError(f"an answer of {length} bytes with status {status} in a block of {size}")
    return Status(status), memory.read(gpa + BLOCK_HEADER, length)
