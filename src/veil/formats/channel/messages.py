# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages in TLS: requests to VeilMon or to a service, and their responses."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Any

from veil.formats.errors import FormatError
from veil.formats.status import Status

__all__ = [
    "MAX_MESSAGE",
    "MAX_STRANGER_MESSAGE",
    "MessageReader",
    "Request",
    "Response",
    "pack_request",
    "pack_response",
]

_REQUEST = struct.Struct("<II16sHH")
_RESPONSE = struct.Struct("<IIHH")
MAX_MESSAGE = 1 << 20
#: The body of a request by somebody whom the launch does not name.
MAX_STRANGER_MESSAGE = 4 << 10


@dataclass(frozen=True)
class Request:
    """To VeilMon (CHANNEL_SERVICE) or a service, by GUID."""

    number: int
    service: uuid.UUID
    call: int
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """To the request with this number; if `status` is not OK the body is a line of text."""

    number: int
    status: Status
    body: bytes = b""


def pack_request(request: Request) -> bytes:
    """A request's bytes."""
    return _REQUEST.pack(len(request.body), request.number, request.service.bytes, request.call, 0) + request.body


def pack_response(response: Response) -> bytes:
    """A response's bytes."""
    return _RESPONSE.pack(len(response.body), response.number, response.status, 0) + response.body


class MessageReader:
    """Cuts the plain text of a connection into requests or responses, with bodies of at most `most` bytes."""

    def __init__(self, most: int = MAX_MESSAGE) -> None:
        self.most = most
        self._held = bytearray()

    def _next(self, header: struct.Struct) -> tuple[tuple[Any, ...], bytes] | None:
        held = self._held
        if len(held) < header.size:
            return None
        fields = header.unpack_from(held)
        length, reserved = fields[0], fields[-1]
        if length > self.most or reserved:
            raise FormatError(f"channel message of {length} bytes, at most {self.most} are allowed")
        end = header.size + length
        if len(held) < end:
            return None
        body = bytes(held[header.size : end])
        del held[:end]
        return fields, body

    def feed(self, data: bytes) -> None:
        """Take in plain text."""
        self._held += data

    def request(self) -> Request | None:
        """The next complete request."""
        found = self._next(_REQUEST)
        if found is None:
            return None
        (_, number, service, call, _), body = found
        return Request(number, uuid.UUID(bytes=service), call, body)

    def response(self) -> Response | None:
        """The next complete response."""
        found = self._next(_RESPONSE)
        if found is None:
            return None
        (_, number, status, _), body = found
        if status not in set(Status):
            raise FormatError(f"channel response with unknown status {status}")
        return Response(number, Status(status), body)
