# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m bench.hostile KIND PORT COUNT: users of a CVM who mean it no good, in a process of their own.

They do as little work as they can for what they cause: requests are encrypted many at a time, answers thrown away
unread, and handshakes begun with one ClientHello that was recorded once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from veil import installation
from veil.formats.channel import Request, pack_request
from veil.formats.knock import KNOCK, pack_proof
from veil.formats.log import LOG_GUID, UserCall
from veil.formats.services_manifest import CHANNEL_SERVICE, NONCE_BYTES
from veil.remote import UserKey

__all__ = ["KINDS"]

_PING, _ATTEST = 0, 1
_REQUESTS = 64
_PIECE = 1 << 16


def _requests(service: object, call: int, body: bytes) -> bytes:
    return b"".join(pack_request(Request(number, service, call, body)) for number in range(_REQUESTS))  # type: ignore[arg-type]


_PINGS = _requests(CHANNEL_SERVICE, _PING, b"")
_PROOFS = _requests(LOG_GUID, UserCall.INCLUSION, bytes(16))
_REPORTS = _requests(CHANNEL_SERVICE, _ATTEST, bytes(NONCE_BYTES))


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
    return context


def _hello() -> bytes:
    tls = SSL.Connection(_context(), None)
    tls.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        tls.do_handshake()
    return tls.bio_read(_PIECE)


class Flooder:
    """A connection that sends the same requests without end. `reads`: it takes the answers."""

    def __init__(self, plain: bytes, *, reads: bool = True) -> None:
        self._plain, self._reads = plain, reads
        self._tls = SSL.Connection(_context(), None)
        self._tls.set_connect_state()
        self._ready = False
        self._out = b""
        self._handshake()

    def _handshake(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self._tls.do_handshake()
            self._ready = True
        self._fill()

    def _fill(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self._out += self._tls.bio_read(_PIECE)

    @property
    def wants(self) -> int:
        """Which events it waits for."""
        reading = selectors.EVENT_READ if self._reads or not self._ready else 0
        return reading | (selectors.EVENT_WRITE if self._out or self._ready else 0)

    def received(self, data: bytes) -> bool:
        """False: give the connection up."""
        if not self._ready:
            self._tls.bio_write(data)
            self._handshake()
        return True

    def send(self, sock: socket.socket) -> None:
        """As much as goes."""
        if not self._out and self._ready:
            self._tls.send(self._plain)
            self._fill()
        self._out = self._out[sock.send(self._out) :]


class Greeter:
    """Has VeilMon begin a handshake, and goes."""

    _HELLO = _hello()

    def __init__(self) -> None:
        self._out = self._HELLO

    @property
    def wants(self) -> int:
        """Which events it waits for."""
        return selectors.EVENT_WRITE if self._out else selectors.EVENT_READ

    def received(self, data: bytes) -> bool:
        """False: give the connection up."""
        return False

    def send(self, sock: socket.socket) -> None:
        """As much as goes."""
        self._out = self._out[sock.send(self._out) :]


class Comer(Flooder):
    """Does all of a handshake, and goes."""

    def __init__(self) -> None:
        super().__init__(b"")

    @property
    def wants(self) -> int:
        """Which events it waits for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)

    def received(self, data: bytes) -> bool:
        """False: give the connection up."""
        super().received(data)
        return not (self._ready and not self._out)


class Impostor:
    """Knocks as an owner whose public key they know, signs with another one, and goes."""

    def __init__(self) -> None:
        self._out = KNOCK

    @property
    def wants(self) -> int:
        """Which events it waits for."""
        return selectors.EVENT_WRITE if self._out else selectors.EVENT_READ

    def received(self, data: bytes) -> bool:
        """False: give the connection up."""
        self._out = pack_proof(_owner(), data, lambda _: _signature())
        return True

    def send(self, sock: socket.socket) -> None:
        """As much as goes."""
        if self._out[:1] != KNOCK[:1]:
            sock.send(self._out)
            raise ConnectionResetError
        self._out = self._out[sock.send(self._out) :]


@functools.cache
def _owner() -> bytes:
    public = installation.user_key().private_key.public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@functools.cache
def _signature() -> bytes:
    return UserKey.generate().private_key.sign(b"", ec.ECDSA(hashes.SHA256()))


class Silent:
    """Connects and says nothing."""

    wants = selectors.EVENT_READ

    def received(self, data: bytes) -> bool:
        """False: give the connection up."""
        return True

    def send(self, sock: socket.socket) -> None:
        """Nothing."""


class Leaver(Silent):
    """Connects and goes at once."""

    wants = selectors.EVENT_WRITE

    def send(self, sock: socket.socket) -> None:
        """Goes."""
        raise ConnectionResetError


Attacker = Flooder | Greeter | Impostor | Silent

KINDS: dict[str, Callable[[], Attacker]] = {
    "pings without end": lambda: Flooder(_PINGS),
    "proofs without end": lambda: Flooder(_PROOFS),
    "reports without end": lambda: Flooder(_REPORTS),
    "handshakes begun": Greeter,
    "handshakes done": Comer,
    "false knocks": Impostor,
    "never reading": lambda: Flooder(_PINGS, reads=False),
    "half open": Silent,
    "connect and go": Leaver,
}


class _Crowd:
    def __init__(self, make: Callable[[], Attacker], port: int, count: int) -> None:
        self._make, self._port = make, port
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            self._connect()

    def _connect(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", self._port))
        self._selector.register(sock, selectors.EVENT_WRITE, self._make())

    def run(self) -> None:
        """Without end: a connection that is closed is opened again."""
        while True:
            for key, events in self._selector.select():
                sock, attacker = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                if self._act(sock, attacker, events):
                    self._selector.modify(sock, attacker.wants or selectors.EVENT_READ, attacker)
                else:
                    self._selector.unregister(sock)
                    sock.close()
                    self._connect()

    def _act(self, sock: socket.socket, attacker: Attacker, events: int) -> bool:
        try:
            if events & selectors.EVENT_READ:
                if not attacker.wants & selectors.EVENT_READ:
                    # Not read, only looked at: is the connection still there?
                    time.sleep(0.001)
                    return bool(sock.recv(1, socket.MSG_PEEK))
                data = sock.recv(_PIECE)
                if not data or not attacker.received(data):
                    return False
            if events & selectors.EVENT_WRITE:
                attacker.send(sock)
        except BlockingIOError:
            return True
        except (OSError, SSL.Error):
            return False
        return True


def main() -> None:
    """Until it is killed."""
    kind, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if len(os.sched_getaffinity(0)) == (os.cpu_count() or 1):
        # One processor for all: the guest's loss shall be VeilMon's work, not the attackers' share of it.
        os.nice(19)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _Crowd(KINDS[kind], port, count).run()


if __name__ == "__main__":
    main()
