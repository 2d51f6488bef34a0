# SPDX-License-Identifier: GPL-2.0-or-later
"""libslirp reads /etc/resolv.conf when the guest first sends something to its name server. In a process that opens no
files any more it must have done so before.

It has no function for that, so it is given such a datagram, in a thread in which nothing can be sent.
"""

from __future__ import annotations

import socket
import struct
import threading

from veil.formats.user_network import GUEST, MAC, NAME_SERVER
from veil.network.seccomp import Action, Filters, Rule
from veil.network.slirp import Slirp

__all__ = ["learn_name_server"]

_DOMAIN = 53
_UDP, _TTL = 17, 64
_IPV4 = b"\x08\x00"


def learn_name_server(slirp: Slirp, filters: Filters) -> None:
    """Have libslirp read /etc/resolv.conf. Raises OSError where the kernel has no filters."""
    failed: list[OSError] = []

    def ask() -> None:
        try:
            filters.load([Rule("sendto", action=Action.PRETEND)], Action.ALLOW)
        except OSError as error:
            failed.append(error)
            return
        slirp.happened([])
        slirp.input(_empty_query())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _empty_query() -> bytes:
    """An Ethernet frame: a datagram from port 0, from which no guest's program sends, with nothing in it."""
    datagram = struct.pack("!HHHH", 0, _DOMAIN, 8, 0)
    ends = socket.inet_aton(GUEST) + socket.inet_aton(NAME_SERVER)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, _TTL, _UDP, 0) + ends
    total: int = sum(struct.unpack("!10H", header))
    checksum = 0xFFFF - total % 0xFFFF
    return bytes(6) + MAC + _IPV4 + header[:10] + checksum.to_bytes(2) + header[12:] + datagram
