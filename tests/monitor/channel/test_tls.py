# SPDX-License-Identifier: GPL-2.0-or-later
"""What a ClientHello can cost: VeilMon computes in one cheap group."""

from __future__ import annotations

import socket
import subprocess

import pytest

from veil.monitor.channel.tls import ChannelKey, TlsFailed
from veil.remote import ChannelClient


def hello(groups: str) -> bytes:
    """OpenSSL's, with key shares of these groups only."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        command = ["openssl", "s_client", "-tls1_3", "-groups", groups, "-connect"]
        with subprocess.Popen(
            [*command, f"127.0.0.1:{server.getsockname()[1]}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                data = connection.recv(1 << 16)
            client.kill()
    return data


@pytest.mark.parametrize("group", ["ffdhe3072", "ffdhe8192", "P-521", "X448"])
def test_dear_groups_are_refused(group: str) -> None:
    with pytest.raises(TlsFailed):
        ChannelKey().accept().receive(hello(group))


def test_its_own_is_answered() -> None:
    end = ChannelKey().accept()
    end.receive(hello("P-256"))
    assert end.take()[0] == 22  # a handshake record: ServerHello


def test_a_share_of_another_group_is_not_computed() -> None:
    """Who has both is asked for the cheap one's."""
    end = ChannelKey().accept()
    end.receive(hello("X25519:P-256"))
    # RFC 8446, 4.1.3: the random value of a HelloRetryRequest
    assert bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c") in end.take()


def test_our_client_needs_no_second_hello() -> None:
    end = ChannelKey().accept()
    sent: list[bytes] = []

    class Transport:
        def send(self, data: bytes, /) -> None:
            sent.append(data)
            end.receive(data)

        def receive(self) -> bytes:
            return end.take()

        def close(self) -> None:
            pass

    ChannelClient(Transport())
    assert end.established
    hellos = [data for data in sent if data[0] == 22 and data[5] == 1]
    assert len(hellos) == 1
