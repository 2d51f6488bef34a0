# SPDX-License-Identifier: GPL-2.0-or-later
"""A listener without its thread, on real sockets, with a clock of the tests', and users who come to it."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from veil.formats.channel import Frame, FrameKind
from veil.formats.knock import CHALLENGE_BYTES, KNOCK
from veil.host.channel_listener import ChannelListener
from veil.host.devices import ChannelConnection, ChannelDevice
from veil.remote import UserKey

PLACES = 4
OWNER = UserKey.generate()


class Host:
    """The hypervisor's thread, which does its part when a test says so."""

    def __init__(self) -> None:
        self.actions: deque[Callable[[], None]] = deque()
        self.listener_ns = 0

    def listener_worked(self, nanoseconds: int) -> None:
        self.listener_ns += nanoseconds

    def post_for_channel(self, action: Callable[[], None]) -> None:
        self.actions.append(action)

    def run(self) -> None:
        while self.actions:
            self.actions.popleft()()


class Device(ChannelDevice):
    """VeilMon is not there: frames to it are kept."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.opened: list[ChannelConnection] = []
        self.expected: list[ChannelConnection] = []

    def open(self, *, expected: bool = False) -> ChannelConnection:
        self.opened.append(super().open(expected=expected))
        if expected:
            self.expected.append(self.opened[-1])
        return self.opened[-1]


class Desk:
    """A listener, and users who come to it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.work, self.work_step = 0.0, 0.0
        self.host, self.device = Host(), Device()
        self.listener = ChannelListener(
            self.host,  # type: ignore[arg-type]
            self.device,
            named=[OWNER.fingerprint],
            clock=self.clock,
            worked=self.worked,
        )
        self.users: list[socket.socket] = []

    def clock(self) -> float:
        """Time passes with each look at it, as it does."""
        self.now += 1e-9
        return self.now

    def worked(self) -> float:
        """Processor time, which passes with each look at it, if a test says so."""
        self.work += self.work_step
        return self.work

    def connect(self) -> socket.socket:
        """Somebody comes; the listener has looked."""
        sock = socket.create_connection(self.listener.address, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.users.append(sock)
        self.look()
        return sock

    def say(self, sock: socket.socket, data: bytes = b"hello") -> ChannelConnection:
        """He says something: his connection at the device."""
        before = len(self.device.opened)
        sock.sendall(data)
        self.look()
        assert len(self.device.opened) == before + 1
        return self.device.opened[-1]

    def look(self) -> None:
        """What the listener's thread does, until nothing happens."""
        listener: Any = self.listener
        quiet = 0
        while quiet < 2:
            events = listener._look(0.002)
            self.host.run()
            quiet = 0 if events else quiet + 1

    def answered(self, sock: socket.socket) -> ChannelConnection:
        """He says something, and VeilMon has answered."""
        connection = self.say(sock)
        connection.handle(Frame(connection.number, FrameKind.CREDIT, bytes(4)))
        assert connection.on_data is not None
        connection.on_data(b"ServerHello")
        self.look()
        return connection

    def knock(self, sock: socket.socket, key: UserKey = OWNER) -> None:
        """He knocks, with his key."""
        sock.sendall(KNOCK)
        self.look()
        sock.sendall(key.answer(sock.recv(CHALLENGE_BYTES)))
        self.look()

    def later(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        self.look()

    def close(self) -> None:
        for sock in self.users:
            sock.close()
        self.listener.close()


def is_open(sock: socket.socket) -> bool:
    """Has the listener not closed it?"""
    if not select.select([sock], [], [], 0.01)[0]:
        return True
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
