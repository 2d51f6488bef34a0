# SPDX-License-Identifier: GPL-2.0-or-later
"""One user's connection: its TLS, its windows, what it asked and has not been answered yet."""

from __future__ import annotations

from collections.abc import Mapping

from veil.formats.channel import (
    FRAME_DATA_MAX,
    WINDOW,
    Frame,
    FrameKind,
    MessageReader,
    Request,
    Response,
    pack_frame,
    pack_response,
)
from veil.formats.errors import FormatError
from veil.formats.roles import Role
from veil.monitor.channel.requests import User
from veil.monitor.channel.tls import TlsEnd, TlsFailed

__all__ = ["Connection"]

#: Requests are left lying while so much of earlier answers waits to be taken.
_BACKLOG = 256 << 10


class Connection:
    """What it holds is bounded: a window of input, a request, a backlog and a response."""

    def __init__(self, number: int, tls: TlsEnd, roles: Mapping[bytes, Role]) -> None:
        self.number = number
        self._tls = tls
        self._roles = roles
        self._reader = MessageReader()
        self._user: User | None = None
        self._may_send = WINDOW
        self._may_receive = WINDOW
        self._to_grant = 0
        self._out = bytearray()
        self.closing = False

    @property
    def user(self) -> User:
        """Who is at the other end, known once TLS is established."""
        if self._user is None:
            fingerprint = self._tls.peer_fingerprint if self._tls.established else None
            role = Role.ANYONE if fingerprint is None else self._roles.get(fingerprint, Role.ANYONE)
            user = User(fingerprint, role)
            if not self._tls.established:
                return user
            self._user = user
        return self._user

    def handle(self, frame: Frame) -> None:
        """A frame from the host. Nothing that it can write harms more than this connection."""
        if self.closing:
            return
        try:
            if frame.kind == FrameKind.DATA:
                self._may_receive -= len(frame.data)
                if self._may_receive < 0:
                    raise FormatError("more data than was granted")
                self._to_grant += len(frame.data)
                self._reader.feed(self._tls.receive(frame.data))
            elif frame.kind == FrameKind.CREDIT:
                self._may_send += int.from_bytes(frame.data, "little")
                if self._may_send > 1 << 30:
                    raise FormatError("more credit than makes sense")
            else:
                self.closing = True
        except (FormatError, TlsFailed):
            # A last alert may tell the user why.
            self.closing = True
        self._out += self._tls.take()

    def next_request(self) -> Request | None:
        """A request to answer now."""
        if self.closing or len(self._out) > _BACKLOG:
            return None
        try:
            return self._reader.request()
        except FormatError:
            self.closing = True
            return None

    def respond(self, response: Response) -> None:
        """Queue a response."""
        if self.closing:
            return
        try:
            self._tls.send(pack_response(response))
        except TlsFailed:
            self.closing = True
        self._out += self._tls.take()

    def next_frame(self) -> bytes | None:
        """A frame for the host, if there is one to send now."""
        if self._to_grant >= WINDOW // 4 and not self.closing and len(self._out) <= _BACKLOG:
            grant, self._to_grant = self._to_grant, 0
            self._may_receive += grant
            return pack_frame(self.number, FrameKind.CREDIT, grant.to_bytes(4, "little"))
        count = min(len(self._out), self._may_send, FRAME_DATA_MAX)
        if not count:
            return None
        data = bytes(self._out[:count])
        del self._out[:count]
        self._may_send -= count
        return pack_frame(self.number, FrameKind.DATA, data)
