# SPDX-License-Identifier: GPL-2.0-or-later
"""Users come by TCP: each connection is carried to VeilMon by the channel device, byte for byte.

A thread of its own waits on the sockets; whatever touches the device is done in the hypervisor's thread, in the
channel's turns. Anybody may come, so everything here is bounded: strangers' connections, how fast new ones are taken
in, and how long one may hold a place and neither speak nor read.

Whoever comes is first in the lobby (`veil.host.lobby`), which costs a descriptor and nothing else. Whom the launch
names can show it there (`veil.host.knocks`), and is let in at once. Who has said something else is let in
when there is a place with VeilMon, the newest first: connections that wait already are in nobody's way, and one
that was put out and comes again waits behind nobody but takes only the place that it gave up. When the lobby is full
its oldest goes. When all places are taken the oldest stranger makes room for the newest, but each has `STAY_S`, and
that from VeilMon's first answer on: nobody makes room because VeilMon has not come to them yet. Whom the launch names
(VeilMon says so) is in nobody's way.
"""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from veil.formats.channel import WINDOW
from veil.host.errors import HostError
from veil.host.knocks import Doorkeeper
from veil.host.lobby import Intake, Said, first_words, hear, is_exhausted, lobby_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from veil.host.devices.channel import ChannelConnection, ChannelDevice
    from veil.host.hypervisor import Hypervisor
    from veil.host.knocks import Knock

__all__ = [
    "DRAIN_S",
    "EXPECTED",
    "GREETED",
    "PROVE_S",
    "SILENT_S",
    "STAY_S",
    "STRANGERS",
    "ChannelListener",
]

#: Connections of users of whom VeilMon has not said that they are somebody. It has as many places for them.
STRANGERS = 256
#: Connections of users who knocked, until VeilMon says that they are somebody; for one more the oldest goes.
EXPECTED = 64
#: How long VeilMon may take to say so, in seconds.
PROVE_S = 10.0
#: What a stranger has at least before making room, in seconds: enough for a handshake and an attestation.
STAY_S = 1.0
#: How many may wait until VeilMon looks at them for the first time (those who waited `STAY_S` do not count): more would
#: only wait there until they must make room.
GREETED = 32
#: A client that has said nothing for this long, or has not read what waits for it, is dropped,
SILENT_S = 10.0
#: and after VeilMon's end of the connection already after this.
DRAIN_S = 2.0

_PIECE = 16 << 10
#: Connections that wait in the kernel: no more than are taken in within half a second.
_BACKLOG = 1024
_SWEEP_S = 0.5
#: Connections that are taken in between two looks at the others.
_ACCEPTS_AT_ONCE = 16


class _User:
    """One TCP connection. Fields are the listener thread's, but for `connection`, which is the hypervisor's."""

    def __init__(self, sock: socket.socket, knock: Knock, now: float) -> None:
        self.socket = sock
        self.knock = knock
        self.connection: ChannelConnection | None = None
        self.out: deque[bytes] = deque()
        self.reading = True
        self.ending = False
        self.since = now
        #: when they last spoke, or read, or there was nothing for them to read
        self.alive = now
        #: there is a place: VeilMon knows of them
        self.known = False
        #: VeilMon has answered
        self.answered = False
        #: they were sent this many bytes that VeilMon was not told of
        self.sent = 0


class ChannelListener:
    """Listens from `start` to `close`."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        device: ChannelDevice,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        named: Iterable[bytes] = (),
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        """Port 0 takes a free one, see `address`. `named`: SHA-256 of the public keys of those whom the launch names.
        `worked` counts seconds of the calling thread's processor time.

        Raises HostError if the address cannot be had.
        """
        self._clock, self._worked = clock, worked
        self._doorkeeper = Doorkeeper(named)
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
        self._lobby_size = lobby_size(STRANGERS)
        #: of them those that are not let in, the oldest first,
        self._lobby: dict[socket.socket, _User] = {}
        #: and of these those that have said something; the first to do so come first
        self._waiting: dict[socket.socket, _User] = {}
        #: those that knocked and that VeilMon has not named yet, the oldest first
        self._expected: dict[socket.socket, _User] = {}
        #: those that have a place and that VeilMon has not named, the oldest first
        self._strangers: dict[socket.socket, _User] = {}
        #: those that VeilMon has not looked at yet, and since when
        self._greeted: dict[socket.socket, float] = {}
        self._woken = False
        self._accepting = True
        self._intake = Intake(clock)
        self._next_sweep = 0.0
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
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):
                self._wake_write.send(b"x")

    def _run(self) -> None:
        while not self._stopping:
            self._look(self._timeout())

    def _look(self, timeout: float | None) -> int:
        """Wait so long, and do what there is to do; how many sockets had something."""
        events = self._selector.select(timeout)
        begin, lobby = self._worked(), 0.0
        for key, mask in events:
            sock = key.fileobj
            before, of_lobby = self._worked(), sock is self._listening or sock in self._lobby
            if sock is self._listening:
                for _ in range(_ACCEPTS_AT_ONCE):
                    if not self._accept():
                        break
            elif sock is self._wake_read:
                with contextlib.suppress(OSError):
                    self._wake_read.recv(4096)
                self._woken = False
            elif isinstance(sock, socket.socket) and sock in self._users:
                self._serve(self._users[sock], mask)
            if of_lobby:
                lobby += self._worked() - before
        while self._todo:
            self._todo.popleft()()
        before = self._worked()
        self._let_in()
        lobby += self._worked() - before
        self._intake.worked(lobby)
        self._sweep()
        self._hypervisor.listener_worked(int((self._worked() - begin) * 1e9))
        return len(events)

    def _timeout(self) -> float | None:
        """Seconds until there is something to look after."""
        waits = [self._next_sweep] if self._users else []
        if not self._accepting:
            waits.append(self._intake.opens)
        if self._waiting:
            waits.append(self._may_let_in())
        return max(0.0, min(waits) - self._clock()) if waits else None

    def _accept(self) -> bool:
        """Take a connection in; False if there is none, or it may not be now."""
        now = self._clock()
        if self._intake.opens > now:
            # Those who come meanwhile wait in the kernel.
            self._accepting = False
            self._selector.unregister(self._listening)
            return False
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            self._intake.took_one()
            if not is_exhausted(error):
                # That one ended before it was taken in, or the network between: nobody pays for it (accept(2)).
                return True
            # The oldest gives its descriptor back.
            for those in (self._lobby, self._strangers):
                if those:
                    self._drop(next(iter(those.values())))
                    break
            self._intake.pause()
            return False
        self._intake.took_one()
        if len(self._lobby) >= self._lobby_size:
            self._drop(next(iter(self._lobby.values())))
        sock.setblocking(False)
        # Answers are small and waited for (Nagle's algorithm holds them back by 40 ms).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._users[sock] = self._lobby[sock] = _User(sock, self._doorkeeper.hear(), now)
        self._selector.register(sock, selectors.EVENT_READ)
        return True

    def _hear(self, user: _User) -> None:
        """Somebody in the lobby has said something, or is gone."""
        said = hear(user.socket, user.knock)
        if said is Said.GONE:
            self._drop(user)
        elif said is Said.PROOF:
            self._expect(user)
        elif said is Said.WORDS:
            self._wait(user)

    def _wait(self, user: _User) -> None:
        self._waiting[user.socket] = user
        user.reading = False
        self._watch(user)

    def _expect(self, user: _User) -> None:
        """Let somebody in whom the launch names."""
        if len(self._expected) >= EXPECTED:
            self._drop(next(iter(self._expected.values())))
        del self._lobby[user.socket]
        self._expected[user.socket] = user
        user.known, user.since, user.alive = True, self._clock(), self._clock()
        self._hypervisor.post_for_channel(functools.partial(self._open, user))

    def _let_in(self) -> None:
        """Those for whom there is a place, the newest first."""
        while self._waiting:
            now = self._clock()
            if self._may_let_in() > now:
                return
            user = self._waiting[next(reversed(self._waiting))]
            data = first_words(user.socket, user.knock, _PIECE)
            if not data:
                self._drop(user)
                continue
            if len(self._strangers) >= STRANGERS:
                self._drop(self._oldest())
            del self._lobby[user.socket], self._waiting[user.socket]
            self._strangers[user.socket] = user
            user.known, user.since, user.alive = True, now, now
            self._greeted[user.socket] = now
            if len(self._greeted) > GREETED:
                del self._greeted[next(iter(self._greeted))]
            self._hypervisor.post_for_channel(functools.partial(self._open, user))
            self._hypervisor.post_for_channel(functools.partial(self._deliver, user, data))

    def _may_let_in(self) -> float:
        """When the next in the lobby can be let in."""
        if len(self._greeted) >= GREETED:
            return next(iter(self._greeted.values())) + STAY_S
        if len(self._strangers) >= STRANGERS:
            return self._oldest().since + STAY_S
        return 0.0

    def _oldest(self) -> _User:
        """The stranger who makes room first: not one whom VeilMon has yet to look at, unless that are all."""
        looked_at = (user for sock, user in self._strangers.items() if sock not in self._greeted)
        return next(looked_at, next(iter(self._strangers.values())))

    def _sweep(self) -> None:
        now = self._clock()
        if not self._accepting and now >= self._intake.opens:
            self._accepting = True
            self._selector.register(self._listening, selectors.EVENT_READ)
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_S
        for user in list(self._users.values()):
            # Nobody waits for a stranger without end; a known user may let a connection lie, but not keep it
            # when VeilMon has ended it.
            stranger = not user.known or user.socket in self._strangers
            owes = bool(user.out) or not user.known
            patience = DRAIN_S if user.ending else SILENT_S
            late = user.socket in self._expected and now - user.since > PROVE_S
            if late or (owes and (stranger or user.ending) and now - user.alive > patience):
                self._drop(user)

    def _serve(self, user: _User, events: int) -> None:
        if not user.known:
            self._hear(user)
            return
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
            self._hypervisor.post_for_channel(functools.partial(self._deliver, user, data))

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
            user.alive = self._clock()
            user.sent += sent
            if user.sent >= WINDOW // 4:  # what the device would tell VeilMon of
                self._hypervisor.post_for_channel(functools.partial(self._sent, user, user.sent))
                user.sent = 0
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
        for those in (self._lobby, self._waiting, self._expected, self._strangers, self._greeted):
            those.pop(user.socket, None)
        if user.socket in self._selector.get_map():
            self._selector.unregister(user.socket)
        user.socket.close()
        if user.known:
            self._hypervisor.post_for_channel(functools.partial(self._close, user))

    def _give(self, user: _User, data: bytes) -> None:
        if user.socket not in self._users:
            return
        if not user.out:
            user.alive = self._clock()
        if not user.answered and user.socket in self._strangers:
            user.answered, user.since = True, self._clock()
            self._strangers[user.socket] = self._strangers.pop(user.socket)
        user.out.append(data)
        self._write(user)

    def _resume(self, user: _User) -> None:
        user.reading = True
        self._watch(user)

    def _end(self, user: _User) -> None:
        if user.socket not in self._users:
            return
        user.ending, user.reading = True, False
        self._write(user)

    def _taken(self, user: _User) -> None:
        self._greeted.pop(user.socket, None)

    def _prove(self, user: _User) -> None:
        self._expected.pop(user.socket, None)
        self._strangers.pop(user.socket, None)

    # The hypervisor's thread

    def _open(self, user: _User) -> None:
        connection = user.connection = self._device.open(expected=user.knock.named)
        connection.on_data = lambda data: self._later(functools.partial(self._give, user, data))
        connection.on_room = lambda: self._later(functools.partial(self._resume, user))
        connection.on_taken = lambda: self._look_at(user)
        connection.on_proven = lambda: self._later(functools.partial(self._prove, user))
        connection.on_close = lambda: self._later(functools.partial(self._end, user))

    def _look_at(self, user: _User) -> None:
        """VeilMon has: once is enough to know."""
        assert user.connection is not None
        user.connection.on_taken = None
        self._later(functools.partial(self._taken, user))

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
