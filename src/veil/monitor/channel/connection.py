# SPDX-License-Identifier: GPL-2.0-or-later
"""One user's connection: its TLS, its windows, what it asked and has not been answered yet."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from veil.formats.channel import (
    MAX_FRAME_DATA,
    MAX_MESSAGE,
    MAX_STRANGER_MESSAGE,
    STRANGER_WINDOW,
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
from veil.formats.roles import Role, User
from veil.monitor.channel.bounds import (
    MAX_BACKLOG,
    MAX_HANDSHAKE_BYTES,
    MAX_PIECE,
    MAX_STRANGER_BACKLOG,
    MAX_STRANGER_PIECE,
    MIN_HANDSHAKE_STEP,
)
from veil.monitor.channel.tls import TlsEnd, TlsFailed

__all__ = ["Connection", "Rank"]


class Rank(enum.IntEnum):
    """What is known of the user at the other end."""

    KNOWN = 0
    """They proved a key that the launch names."""
    EXPECTED = 1
    """Nothing yet, but the host says that it will be such a key: a matter of whose turn it is, and of nothing else."""
    HANDSHAKE = 2
    """Nothing yet: TLS is not established."""
    STRANGER = 3
    """They have no such key."""


class Connection:
    """What it holds is bounded: a window of input, a request, a backlog and a response."""

    def __init__(
        self,
        number: int,
        accept: Callable[[], TlsEnd],
        roles: Mapping[bytes, Role],
        *,
        opened_ns: int,
        expected: bool = False,
    ) -> None:
        self.number = number
        self.opened_ns = opened_ns
        self.rank = Rank.EXPECTED if expected else Rank.HANDSHAKE
        self.user = User(None, Role.ANYONE)
        self.closing = False
        self._accept = accept
        self._tls: TlsEnd | None = None
        self._roles = roles
        self._handshake_left = MAX_HANDSHAKE_BYTES
        self._input = bytearray()
        self._reader = MessageReader(MAX_STRANGER_MESSAGE)
        self._asked = False  # the reader may have a complete request
        self._may_send = WINDOW
        self._may_receive = STRANGER_WINDOW
        self._to_grant = 0
        self._to_tell = False
        self._out = bytearray()

    @property
    def in_handshake(self) -> bool:
        """Has nobody proved anything yet?"""
        return self.rank in (Rank.EXPECTED, Rank.HANDSHAKE)

    @property
    def has_work(self) -> bool:
        """Is there a `step` to do now?"""
        if self.closing or not (self._input or self._asked):
            return False
        return len(self._out) <= (MAX_BACKLOG if self.rank == Rank.KNOWN else MAX_STRANGER_BACKLOG)

    def handle(self, frame: Frame) -> None:
        """A frame that is not OPEN or CLOSE: it is kept, no more. Nothing in it harms more than this connection."""
        if self.closing:
            return
        if frame.kind == FrameKind.DATA:
            self._may_receive -= len(frame.data)
            self._input += frame.data
            if self._may_receive < 0:
                self._end()
        elif frame.kind == FrameKind.CREDIT:
            self._may_send += int.from_bytes(frame.data, "little")
            if self._may_send > 1 << 30:
                self._end()
        else:
            self._end()

    def step(self) -> Request | None:
        """A piece of work: the next request if there is one, for the caller to answer, else some input for TLS."""
        try:
            if self._asked:
                request = self._reader.request()
                if request is not None:
                    return request
                self._asked = False
            self._decrypt()
        except (FormatError, TlsFailed):
            # A last alert may tell the user why.
            self._end()
        return None

    def _decrypt(self) -> None:
        known = self.rank == Rank.KNOWN
        piece = bytes(self._input[: MAX_PIECE if known else MAX_STRANGER_PIECE])
        if not piece:
            return
        del self._input[: len(piece)]
        self._to_grant += len(piece)
        if self._tls is None:
            self._tls = self._accept()
        tls = self._tls
        try:
            plain = tls.receive(piece)
        finally:
            self._out += tls.take()
        if self.in_handshake:
            self._handshake_left -= max(len(piece), MIN_HANDSHAKE_STEP)
            if tls.established:
                self._meet(tls)
            elif self._handshake_left < 0:
                raise TlsFailed("a handshake that does not end")
        self._reader.feed(plain)
        self._asked = bool(plain)

    def _meet(self, tls: TlsEnd) -> None:
        """The handshake is done: who is it?"""
        fingerprint = tls.peer_fingerprint
        role = Role.ANYONE if fingerprint is None else self._roles.get(fingerprint, Role.ANYONE)
        self.user = User(fingerprint, role)
        if role == Role.ANYONE:
            self.rank = Rank.STRANGER
            return
        self.rank = Rank.KNOWN
        self._to_tell = True
        self._to_grant += WINDOW - STRANGER_WINDOW
        self._reader.most = MAX_MESSAGE

    def respond(self, response: Response) -> None:
        """Queue a response."""
        if self.closing or self._tls is None:
            return
        try:
            self._tls.send(pack_response(response))
        except TlsFailed:
            self._end()
        self._out += self._tls.take()

    def _end(self) -> None:
        self.closing = True
        self._input.clear()
        self._asked = False

    def next_frame(self) -> bytes | None:
        """A frame for the host, if there is one to send now."""
        if self._to_tell:
            self._to_tell = False
            return pack_frame(self.number, FrameKind.PROVEN)
        # In a handshake each piece is acknowledged: the host sees by it how many wait to be looked at.
        if self._to_grant >= (1 if self.in_handshake else STRANGER_WINDOW // 4) and not self.closing:
            grant, self._to_grant = self._to_grant, 0
            self._may_receive += grant
            return pack_frame(self.number, FrameKind.CREDIT, grant.to_bytes(4, "little"))
        count = min(len(self._out), self._may_send, MAX_FRAME_DATA)
        if not count:
            return None
        data = bytes(self._out[:count])
        del self._out[:count]
        self._may_send -= count
        return pack_frame(self.number, FrameKind.DATA, data)
