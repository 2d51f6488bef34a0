# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the channel through the harness's host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tests.monitor.harness import Bench
from veil.formats.monitor_calls import MonitorCall
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.host.devices import ChannelConnection
from veil.remote.channel.client import ChannelClient


class Wire:
    """A transport through the bench's host; `up` and `down` see and change what passes.

    `expected`: the host believes that it is somebody whom the launch names.
    """

    def __init__(self, bench: Bench, *, expected: bool = False) -> None:
        self.bench = bench
        self.connection: ChannelConnection = bench.channel.device.open(expected=expected)
        self.received: deque[bytes] = deque()
        self.connection.on_data = self.received.append
        self.up: Callable[[bytes], bytes] = lambda data: data
        self.down: Callable[[bytes], bytes] = lambda data: data

    def send(self, data: bytes, /) -> None:
        self.connection.send(self.up(data))

    def receive(self) -> bytes:
        self.bench.channel.run()
        if not self.received:
            return b""
        data = self.received.popleft()
        self.connection.consumed(len(data))
        return self.down(data)

    def close(self) -> None:
        self.connection.close()
        self.bench.channel.run()


def ping(client: ChannelClient, body: bytes = b"still there?") -> None:
    assert client.request(CHANNEL_SERVICE, MonitorCall.PING, body) == body
