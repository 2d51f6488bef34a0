# SPDX-License-Identifier: GPL-2.0-or-later
"""Users come by TCP: each connection is carried to VeilMon by the channel device, byte for byte.

A thread of its own waits on the sockets; whatever touches the device is done in the hypervisor's thread.
"""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

from veil.host.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.channel import ChannelConnection, ChannelDevice
    from veil.host.hypervisor import Hypervisor

__all__ = ["ChannelListener"]

_PIECE = 16 << 10
_BACKLOG = 64
_MAX_USERS = 256


class _User:
    """One TCP connection. Fields are the listener thread's, but for `connection`, which is the hypervisor's."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.connection: ChannelConnection | None = None
        self.out: deque[bytes] = deque()
        self.reading = True
        self.ending = False


class ChannelListener:
    """Listens from `start` to `close`."""

    def __init__(self, hypervisor: Hypervisor, device: ChannelDevice, host: str = "127.0.0.1", port: int = 0) -> None:
        """Port 0 takes a free one, see `address`. Raises HostError if the address cannot be had."""
        self._hypervisor = hypervisor
        self._device = device
        try:
            self._listening = socket.create_server((host, port), backlog=_BACKLOG)
        except OSError as error:
            raise HostError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        for sock in (self._listening, self._wake_read):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self._todo: deque[Callable[[], None]] = deque()
        self._users: dict[socket.socket, _User] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="channel listener", daemon=True)

    def start(self) -> None:
        """Begin to take users in."""
        self._thread.start()

    def close(self) -> None:
        """Drop all users and the address."""
        self._stopping = True
        self._later(lambda: None)
        if self._thread.is_alive():
            self._thread.join()
        for sock in (self._listening, self._wake_read, self._wake_write, *self._users):
            sock.close()
        self._selector.close()

    # The listener's thread

    def _later(self, action: Callable[[], None]) -> None:
        """Have the listener's thread do something. Safe in any thread."""
        self._todo.append(action)
        with contextlib.suppress(OSError):
            self._wake_write.send(b"x")

    def _run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select():
                sock = key.fileobj
                if sock is self._listening:
                    self._accept()
                elif sock is self._wake_read:
                    with contextlib.suppress(OSError):
                        self._wake_read.recv(4096)
                elif isinstance(sock, socket.socket) and sock in self._users:
                    self._serve(self._users[sock], events)
            while self._todo:
                self._todo.popleft()()

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError:
            return
        if len(self._users) >= _MAX_USERS:
            sock.close()
            return
        sock.setblocking(False)
        user = self._users[sock] = _User(sock)
        self._selector.register(sock, selectors.EVENT_READ)
        self._hypervisor.post(functools.partial(self._open, user))

    def _serve(self, user: _User, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write(user)
        if events & selectors.EVENT_READ and user.reading and user.socket in self._users:
            try:
                data = user.socket.recv(_PIECE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop(user)
                return
            # No more until VeilMon has taken this: a user who sends without end fills no memory.
            user.reading = False
            self._watch(user)
            self._hypervisor.post(functools.partial(self._deliver, user, data))

    def _write(self, user: _User) -> None:
        sent = 0
        try:
            while user.out:
                count = user.socket.send(user.out[0])
                sent += count
                if count < len(user.out[0]):
                    user.out[0] = user.out[0][count:]
                    break
                user.out.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._drop(user)
            return
        if sent:
            self._hypervisor.post(functools.partial(self._sent, user, sent))
        if user.ending and not user.out:
            self._drop(user)
        else:
            self._watch(user)

    def _watch(self, user: _User) -> None:
        if user.socket not in self._users:
            return
        events = (selectors.EVENT_READ if user.reading else 0) | (selectors.EVENT_WRITE if user.out else 0)
        known = user.socket in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(user.socket)
        elif known:
            self._selector.modify(user.socket, events)
        else:
            self._selector.register(user.socket, events)

    def _drop(self, user: _User) -> None:
        if self._users.pop(user.socket, None) is None:
            return
        if user.socket in self._selector.get_map():
            self._selector.unregister(user.socket)
        user.socket.close()
        self._hypervisor.post(functools.partial(self._close, user))

    def _give(self, user: _User, data: bytes) -> None:
        user.out.append(data)
        self._write(user)

    def _resume(self, user: _User) -> None:
        user.reading = True
        self._watch(user)

    def _end(self, user: _User) -> None:
        user.ending = True
        self._write(user)

    # The hypervisor's thread

    def _open(self, user: _User) -> None:
        connection = user.connection = self._device.open()
        connection.on_data = lambda data: self._later(functools.partial(self._give, user, data))
        connection.on_room = lambda: self._later(functools.partial(self._resume, user))
        connection.on_close = lambda: self._later(functools.partial(self._end, user))

    def _deliver(self, user: _User, data: bytes) -> None:
        connection = user.connection
        if connection is None or not connection.is_open:
            return
        connection.send(data)
        if not connection.unsent:
            self._later(functools.partial(self._resume, user))

    def _sent(self, user: _User, count: int) -> None:
        if user.connection is not None:
            user.connection.consumed(count)

    def _close(self, user: _User) -> None:
        if user.connection is not None:
            user.connection.close()
