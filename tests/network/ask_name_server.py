# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest asks its name server, in a name space whose /etc/resolv.conf, at first, says 127.0.0.1, and where nobody
else listens. Prints what that server hears. For `test_name_server`."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

from tests.network.frames import FakeCard, udp
from veil.formats.user_network import NAME_SERVER
from veil.network import UserNetwork, link

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
#: longer than libslirp goes without a look at the file
_A_WHILE = 1.5


def _ask(words: bytes, card: FakeCard, server: socket.socket, source: int) -> str:
    card.network.send(udp(words, 53, source=source, address=NAME_SERVER))
    with suppress(TimeoutError):
        return server.recv(100).decode()
    return "nothing"


def main() -> None:
    """`sys.argv`: what to execute first in the network's process, and where libslirp is."""
    instead, *folders = sys.argv[1:]
    if instead:
        link._PROGRAM = (
            f"import sys; sys.path.append(sys.argv[1]); from veil.network import process; {instead}; process.main()"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        fcntl.ioctl(server, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
        server.bind(("127.0.0.1", 53))
        server.settimeout(2)
        with closing(UserNetwork(folders=[Path(folder) for folder in folders])) as network:
            assert network.unconfined is None
            card = FakeCard(network)
            heard = [_ask(b"at first", card, server, 2000)]
            time.sleep(_A_WHILE)
            heard.append(_ask(b"later", card, server, 2001))
            Path("/etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
            time.sleep(_A_WHILE)
            heard.append(_ask(b"when the file is another", card, server, 2002))
    print(json.dumps(heard))


if __name__ == "__main__":
    main()
