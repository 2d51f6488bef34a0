# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's end of its network: the process that has libslirp, and a thread that waits for its frames."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from veil.errors import VeilError
from veil.network.process import LONGEST_FRAME, MISSING, UNCONFINED
from veil.private_files import UMASK

__all__ = ["Card", "Forward", "LibraryMissing", "NetworkError", "UserNetwork"]

#: frames that are with the card at most
_FRAMES_AT_ONCE = 64
#: seconds
_START_TIMEOUT, _END_TIMEOUT = 30.0, 5.0
#: No site, no paths of the environment's, not the folder where we are: the standard library and Veil alone.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from veil.network.process import main; main()"
_PYTHON_OPTIONS = ("-I", "-S")


class NetworkError(VeilError):
    """There is no such network."""


class LibraryMissing(NetworkError):
    """libslirp is not there, or cannot be used."""


@dataclass(frozen=True)
class Forward:
    """Those who come to a port of this computer are carried to one of the guest's."""

    protocol: str
    """"tcp" or "udp"."""
    address: str
    """This computer's IPv4 address at which is listened."""
    port: int
    guest_port: int

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp"):
            raise NetworkError(f"ports are forwarded by tcp or udp, not {self.protocol!r:.20}")
        try:
            socket.inet_pton(socket.AF_INET, self.address)
        except (OSError, ValueError):
            raise NetworkError(f"{self.address!r:.60} is not an IPv4 address") from None
        for port in (self.port, self.guest_port):
            if not 0 < port < 1 << 16:
                raise NetworkError(f"a port is a number from 1 to 65535, not {port}")

    def __str__(self) -> str:
        return f"{self.protocol}:{self.address}:{self.port}:{self.guest_port}"


class Card(Protocol):
    """The guest's network card. For the hypervisor's thread."""

    def receive(self, frames: Sequence[bytes], /) -> None:
        """Frames for the guest; `UserNetwork.taken` follows."""

    def resume(self) -> None:
        """Frames are taken again."""

    def announce(self) -> None:
        """Somebody is at the other end."""

    def unplug(self) -> None:
        """Nobody is at the other end any more."""


class UserNetwork:
    """One guest's network, from here to `close`."""

    def __init__(
        self,
        forwards: Sequence[Forward] = (),
        *,
        restrict: bool = False,
        loopback: bool = True,
        folders: Sequence[Path] = (),
    ) -> None:
        """It listens for those who are to be carried to the guest; they wait until there is one.

        `restrict`: the guest reaches nobody. `loopback`: if it reaches anybody, this computer's 127.0.0.1 as well, at
        the gateway's address. `folders`: where libslirp is, if it is not to be this computer's. Raises NetworkError,
        LibraryMissing.
        """
        #: told, for people, why there is no network any more
        self.on_end: Callable[[str], None] = lambda words: None
        #: why the process has all rights of this user, if it has
        self.unconfined: str | None = None
        self._card: Card | None = None
        self._post: Callable[[Callable[[], None]], None] = lambda action: None
        self._delivering = False
        self._wants_room = False
        self._closing = False
        self._thread: threading.Thread | None = None
        settings = {
            "folders": [str(folder) for folder in folders],
            "forwards": [[item.protocol, item.address, item.port, item.guest_port] for item in forwards],
            "restrict": restrict,
            "loopback": loopback,
        }
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with other:
                self._process = _start(other.fileno(), json.dumps(settings))
        except OSError as error:
            self._socket.close()
            os.close(self._wake)
            raise NetworkError(f"the network's process cannot be started: {error.strerror or error}") from error
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        self._socket.settimeout(_START_TIMEOUT)
        try:
            words = json.loads(self._socket.recv(LONGEST_FRAME) or b'{"error": "the process of the network ended"}')
        except (OSError, ValueError) as error:
            raise NetworkError(f"the network's process does not say that it is ready: {error}") from error
        if MISSING in words:
            raise LibraryMissing(words[MISSING])
        if "error" in words:
            raise NetworkError(f"network: {words['error']}")
        self.unconfined = words.get(UNCONFINED)
        self._socket.setblocking(False)

    def plug(self, card: Card, post: Callable[[Callable[[], None]], None]) -> None:
        """Carry frames from and to a card. `post` has something done in the hypervisor's thread."""
        self._card, self._post = card, post
        self._tell(lambda card: card.announce())
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The network is gone, and with it all of the guest's connections."""
        if self._closing:
            return
        self._closing = True
        self._wake_up()
        if self._thread is not None:
            self._thread.join()
        # With its end of the socket the process ends.
        self._socket.close()
        self._wait_for_end()
        os.close(self._wake)

    def _wait_for_end(self) -> int:
        """The process's exit status. It was to end by itself; whoever has taken it over may have other plans."""
        try:
            return self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    # The hypervisor's thread

    def send(self, frame: bytes) -> bool:
        """Take a frame of the guest's. False: not now; `Card.resume` is called when it can be."""
        try:
            self._socket.send(frame)
        except BlockingIOError:
            self._wants_room = True
            self._wake_up()
            return False
        except OSError:
            pass  # the thread says that nobody is there
        return True

    def taken(self) -> None:
        """All that was received is with the guest or lost: more may come."""
        if self._delivering and not self._closing:
            self._delivering = False
            self._wake_up()

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    # A thread of its own

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        while not self._closing:
            events = (0 if self._delivering else select.POLLIN) | (select.POLLOUT if self._wants_room else 0)
            poller.register(self._socket, events)
            happened = dict(poller.poll())
            if self._wake in happened:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            here = happened.get(self._socket.fileno(), 0)
            if here & select.POLLOUT:
                self._wants_room = False
                self._tell(lambda card: card.resume())
            if here & (select.POLLHUP | select.POLLERR) or (here & select.POLLIN and not self._receive()):
                self._gone()
                return

    def _tell(self, action: Callable[[Card], None]) -> None:
        card = self._card
        if card is not None:
            self._post(lambda: action(card))

    def _receive(self) -> bool:
        """Have the card take what there is; False if there will be no more."""
        frames: list[bytes] = []
        try:
            while len(frames) < _FRAMES_AT_ONCE:
                frame = self._socket.recv(LONGEST_FRAME)
                if not frame:
                    return False
                frames.append(frame)
        except BlockingIOError:
            pass
        except OSError:
            return False
        self._delivering = True
        self._tell(lambda card: card.receive(frames))
        return True

    def _gone(self) -> None:
        self._tell(lambda card: card.unplug())
        status = self._wait_for_end()
        self._post(lambda: self.on_end(f"the guest's network is gone: its process ended ({_how(status)})"))


def _start(descriptor: int, settings: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, *_PYTHON_OPTIONS, "-c", _PROGRAM, str(root), str(descriptor), settings],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # libslirp complains there about what guests send.
        stderr=subprocess.DEVNULL,
        pass_fds=[descriptor],
        cwd="/",
        # What a terminal sends to all that it has started is for the process that has the guest.
        start_new_session=True,
        umask=UMASK,
    )


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
