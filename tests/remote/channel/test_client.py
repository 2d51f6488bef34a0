# SPDX-License-Identifier: GPL-2.0-or-later
"""A client whose handshake is dropped comes again: a crowd of strangers at the host must not keep an owner out."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from veil.monitor.channel.tls import ChannelKey, TlsFailed
from veil.remote import ChannelClient, ChannelClosed


class Server:
    """Drops the first connections after their hello, or answers them with `nonsense`; then it is VeilMon's TLS."""

    def __init__(self, drops: int, nonsense: bytes = b"") -> None:
        self.came = 0
        self._drops, self._nonsense = drops, nonsense
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        key = ChannelKey()
        with contextlib.suppress(OSError, TlsFailed):
            while True:
                sock, _ = self._listening.accept()
                self.came += 1
                with sock:
                    hello = sock.recv(1 << 16)
                    if self.came <= self._drops:
                        sock.sendall(self._nonsense)
                        continue
                    end = key.accept()
                    while not end.established:
                        end.receive(hello)
                        sock.sendall(end.take())
                        if not end.established:
                            hello = sock.recv(1 << 16)
                    sock.recv(1)

    def close(self) -> None:
        # Closing does not wake a thread in accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(*request.param)
    yield made
    made.close()


@pytest.mark.parametrize("server", [(3,)], indirect=True)
def test_dropped_handshakes_are_tried_again(server: Server) -> None:
    ChannelClient.connect("127.0.0.1", server.port).close()
    assert server.came == 4


@pytest.mark.parametrize("server", [(1000,)], indirect=True)
def test_not_for_ever(server: Server) -> None:
    with pytest.raises(ChannelClosed):
        ChannelClient.connect("127.0.0.1", server.port, timeout=0.3)
    assert server.came > 1


@pytest.mark.parametrize("server", [(1, b"HTTP/1.1 400 Bad Request\r\n\r\n")], indirect=True)
def test_an_answer_that_is_no_tls_is_final(server: Server) -> None:
    with pytest.raises(ChannelClosed, match="no secure channel"):
        ChannelClient.connect("127.0.0.1", server.port)
    assert server.came == 1
