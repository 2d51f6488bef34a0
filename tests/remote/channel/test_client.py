# SPDX-License-Identifier: GPL-2.0-or-later
"""A client whose handshake is dropped comes again: a crowd of strangers at the host must not keep an owner out."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from veil.formats.knock import KNOCK
from veil.host.knocks import Doorkeeper
from veil.monitor.channel.tls import ChannelKey, TlsFailed
from veil.remote import ChannelClient, ChannelClosed, UserKey

OWNER = UserKey.generate()


class Server:
    """Drops the first connections after their hello, or answers them with `nonsense`; then it is VeilMon's TLS.

    Knows `OWNER` by their knock.
    """

    def __init__(self, drops: int, nonsense: bytes = b"") -> None:
        self.came = 0
        self.named: list[bool] = []
        self._doorkeeper = Doorkeeper([OWNER.fingerprint])
        self._drops, self._nonsense = drops, nonsense
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        key = ChannelKey()
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self.came += 1
                with sock, contextlib.suppress(OSError, TlsFailed):
                    self._serve(sock, key)

    def _serve(self, sock: socket.socket, key: ChannelKey) -> None:
        drops = self.came <= self._drops
        knock = self._doorkeeper.hear()
        while not knock.over:
            data = sock.recv(knock.wants)
            if drops:
                break
            sock.sendall(knock.heard(data))
        self.named.append(knock.named)
        if drops:
            sock.sendall(self._nonsense)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1 << 16)
            return
        hello = knock.words + sock.recv(1 << 16)
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


@pytest.mark.parametrize("server", [(2, b"HTTP/1.1 400 Bad Request\r\n\r\n")], indirect=True)
def test_an_answer_that_is_no_tls_is_final(server: Server) -> None:
    with pytest.raises(ChannelClosed, match="no secure channel"):
        ChannelClient.connect("127.0.0.1", server.port)
    assert server.came == 1
    with pytest.raises(ChannelClosed, match="no secure channel"):
        ChannelClient.connect("127.0.0.1", server.port, identity=OWNER)
    assert server.came == 2


@pytest.mark.parametrize("server", [(0,)], indirect=True)
def test_who_has_a_key_knocks_first(server: Server) -> None:
    for identity, named in ((OWNER, True), (UserKey.generate(), False), (None, False)):
        server.named.clear()
        ChannelClient.connect("127.0.0.1", server.port, identity=identity).close()
        assert set(server.named) == {named}


@pytest.mark.parametrize("server", [(2,)], indirect=True)
def test_dropped_knocks_are_tried_again(server: Server) -> None:
    ChannelClient.connect("127.0.0.1", server.port, identity=OWNER).close()
    assert server.named[:3] == [False, False, True]


@pytest.mark.parametrize("server", [(1, KNOCK + bytes(33))], indirect=True)
def test_a_challenge_that_is_none_is_final(server: Server) -> None:
    with pytest.raises(ChannelClosed, match="no challenge"):
        ChannelClient.connect("127.0.0.1", server.port, identity=OWNER)
    assert server.came == 1
