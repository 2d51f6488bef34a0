# SPDX-License-Identifier: GPL-2.0-or-later
"""The process in which libslirp runs. Each message on its socket is a frame, but for the first that it sends: that it
is ready, or why it is not.

It ends when the other end of the socket is closed, so it never outlives the process that has the guest. Before it reads
a frame it is confined (`veil.network.confinement`): libslirp is there, and listens at its ports, by then.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import deque

from veil.network.confinement import confine, limit
from veil.network.name_server import learn_name_server
from veil.network.seccomp import Filters
from veil.network.slirp import LIBRARY, Slirp, load_library

__all__ = ["LONGEST_FRAME", "MISSING", "UNCONFINED", "main"]

#: No message is longer.
LONGEST_FRAME = 4096
#: in the first message: there is no library, so that another one may be tried
MISSING = "missing"
#: in the first message: it is ready, with all rights of the user, and why
UNCONFINED = "unconfined"
#: frames of the guest between two looks at the sockets
_FRAMES_AT_ONCE = 64
#: With so many frames that the guest has not taken nothing more is read from anybody; what comes all the same, beyond
#: this, is lost.
_FULL, _LOST = 256, 4096
# Of an Ethernet frame: its type, and in IPv4's header the first byte of the destination.
_TYPE, _DESTINATION = slice(12, 14), slice(30, 31)
_ARP, _IPV4 = b"\x08\x06", b"\x08\x00"
_THIS_COMPUTER = (b"", b"\0", b"\x7f")


def main() -> None:
    """`sys.argv` ends with the socket's descriptor, and the settings as JSON: "folders" as of `load_library`,
    "forwards" as of `Slirp.forward`, "restrict", "loopback"."""
    descriptor, settings = int(sys.argv[-2]), json.loads(sys.argv[-1])
    with socket.socket(fileno=descriptor) as link:
        link.setblocking(False)
        try:
            library = load_library(settings["folders"])
        except OSError as error:
            _say(link, {MISSING: f"{LIBRARY} cannot be loaded: {error}"})
            return
        outbox = _Outbox(link)
        slirp = Slirp(library, outbox.put, restrict=settings["restrict"], loopback=settings["loopback"])
        for protocol, address, port, guest_port in settings["forwards"]:
            try:
                slirp.forward(protocol, address, port, guest_port)
            except OSError as error:
                _say(link, {"error": f"cannot listen at {protocol}:{address}:{port}: {error.strerror or error}"})
                return
        why_not = _confine(slirp, restrict=settings["restrict"])
        _say(link, {} if why_not is None else {UNCONFINED: why_not})
        while _turn(link, outbox, slirp):
            pass


def _confine(slirp: Slirp, *, restrict: bool) -> str | None:
    """None, or why the process is not confined; its limits it has anyway."""
    try:
        filters = Filters()
    except OSError as error:
        limit()
        return f"there is no libseccomp: {error}"
    try:
        if not restrict:
            learn_name_server(slirp, filters)
        limit()
        confine(filters, restrict=restrict)
    except OSError as error:
        limit()
        return f"the kernel takes no filter of system calls: {error.strerror}"
    return None


def _say(link: socket.socket, words: dict[str, str]) -> None:
    link.send(json.dumps(words).encode()[:LONGEST_FRAME])


class _Outbox:
    """Frames for the guest."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._frames: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: bytes) -> None:
        if len(self._frames) < _LOST:
            self._frames.append(frame)
        self.flush()

    def flush(self) -> None:
        """As many as the other end takes."""
        try:
            while self._frames:
                self._link.send(self._frames[0])
                self._frames.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._frames.clear()  # it is gone, as reading will tell


def _turn(link: socket.socket, outbox: _Outbox, slirp: Slirp) -> bool:
    """Wait for something, and do it; False at the end."""
    full = len(outbox) >= _FULL
    poller = select.poll()
    poller.register(link, (0 if full else select.POLLIN) | (select.POLLOUT if outbox else 0))
    events = poller.poll() if full else poller.poll(slirp.watch(poller))
    here = dict(events).get(link.fileno(), 0)
    if here & select.POLLOUT:
        outbox.flush()
    if not full:
        # Before the guest's frames: by it the network knows what time it is, and how long to keep what they begin.
        slirp.happened(events)
    if here & select.POLLIN:
        return _take(link, slirp)
    return not here & (select.POLLHUP | select.POLLERR)


def _take(link: socket.socket, slirp: Slirp) -> bool:
    """What the guest sent; False if there will be no more."""
    try:
        for _ in range(_FRAMES_AT_ONCE):
            frame = link.recv(LONGEST_FRAME)
            if not frame:
                return False
            if _may_pass(frame):
                slirp.input(frame)
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True


def _may_pass(frame: bytes) -> bool:
    """Is it ARP, or IPv4 to an address that can be on a wire?

    libslirp has this computer's 127.0.0.1 at the gateway's address and refuses that if it is told to, but connects to
    whatever else a packet names: to 127.0.0.1 itself, and to 0.0.0.0, which is the same (RFC 1122, 3.2.1.3). And it
    reads other protocols, which this network does not have.
    """
    kind = frame[_TYPE]
    return kind == _ARP or (kind == _IPV4 and frame[_DESTINATION] not in _THIS_COMPUTER)
