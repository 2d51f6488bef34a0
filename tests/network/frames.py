# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of a guest without a kernel, and its network card."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Sequence

from veil.formats.user_network import GATEWAY, GUEST, MAC
from veil.network import UserNetwork

__all__ = ["FakeCard", "arp_request", "dhcp_discover", "free_port", "ping", "udp"]

_IPV4, _ARP = b"\x08\x00", b"\x08\x06"
#: libslirp's, of whoever has this address
_GATEWAY_MAC = b"\x52\x55" + socket.inet_aton(GATEWAY)
_TIMEOUT = 5.0


class FakeCard:
    """Collects frames; `busy`: it does not say that it has them."""

    def __init__(self, network: UserNetwork) -> None:
        self.network = network
        self.busy = False
        self.frames: list[bytes] = []
        self.resumed = 0
        self.unplugged = False
        self._changed = threading.Condition()
        network.plug(self, self._do)
        # Who has not said where they are gets nothing.
        assert network.send(arp_request())

    def _do(self, action: Callable[[], None]) -> None:
        with self._changed:
            action()
            self._changed.notify_all()

    def receive(self, frames: Sequence[bytes], /) -> None:
        self.frames += frames
        if not self.busy:
            self.network.taken()

    def resume(self) -> None:
        self.resumed += 1

    def announce(self) -> None:
        pass

    def unplug(self) -> None:
        self.unplugged = True

    def wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(until, _TIMEOUT)

    def expect(self, wanted: Callable[[bytes], bool]) -> bytes:
        """The first frame of these that came or comes."""
        self.wait(lambda: any(map(wanted, self.frames)))
        return next(filter(wanted, self.frames))

    def round_trip(self, number: int) -> None:
        """All that was sent before is answered, or never will be: the other end answers a ping."""
        assert self.network.send(ping(number))
        self.expect(
            lambda frame: frame[12:14] == _IPV4 and frame[34:35] == b"\0" and frame[40:42] == number.to_bytes(2)
        )


def arp_request() -> bytes:
    """Who has the gateway's address? It makes the guest known, too."""
    head = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1)
    return b"\xff" * 6 + MAC + _ARP + head + MAC + socket.inet_aton(GUEST) + bytes(6) + socket.inet_aton(GATEWAY)


def ping(number: int) -> bytes:
    """An echo request to the gateway, which answers for itself."""
    body = struct.pack("!HHH", 0, 1, number) + bytes(8)
    return _packet(1, b"\x08\0" + _checksum(b"\x08\0" + body).to_bytes(2) + body[2:], GATEWAY)


def udp(data: bytes, port: int, *, source: int = 4000, address: str = GATEWAY) -> bytes:
    """A datagram of the guest's."""
    return _packet(17, struct.pack("!HHHH", source, port, 8 + len(data), 0) + data, address)


def dhcp_discover() -> bytes:
    """Of a guest that has no address yet."""
    body = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0x8000) + bytes(16) + MAC.ljust(16, b"\0") + bytes(192)
    body += b"\x63\x82\x53\x63" + b"\x35\x01\x01" + b"\xff"
    datagram = struct.pack("!HHHH", 68, 67, 8 + len(body), 0) + body
    return _packet(17, datagram, "255.255.255.255", source="0.0.0.0", to=b"\xff" * 6)


def _packet(protocol: int, body: bytes, address: str, *, source: str = GUEST, to: bytes = _GATEWAY_MAC) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(address)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + ends
    return to + MAC + _IPV4 + head[:10] + _checksum(head).to_bytes(2) + head[12:] + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def free_port(kind: socket.SocketKind) -> int:
    """Of this computer's 127.0.0.1."""
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
