# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's connection to VeilMon without a network: bytes go straight to the host's channel device, and the host runs
whenever the user waits."""

from __future__ import annotations

from collections import deque

from veil.host import Hypervisor, RunResult
from veil.host.devices import ChannelConnection
from veil.remote import ChannelClosed

__all__ = ["VmTransport"]

_BACKLOG = 256 << 10
_WHY = {
    RunResult.TIMEOUT: "VeilMon did not answer within {seconds:g} seconds",
    RunResult.STOPPED: "the host was stopped before VeilMon answered",
}


class VmTransport:
    """A `veil.remote.Transport`. `timeout` in seconds for each wait."""

    def __init__(self, hypervisor: Hypervisor, connection: ChannelConnection, *, timeout: float = 30.0) -> None:
        self._hypervisor = hypervisor
        self._connection = connection
        self._timeout = timeout
        self._received: deque[bytes] = deque()
        connection.on_data = self._received.append

    def send(self, data: bytes, /) -> None:
        """Give bytes to the host; runs it while too many wait. Raises ChannelClosed."""
        connection = self._connection
        connection.send(data)
        if connection.unsent > _BACKLOG:
            done = self._hypervisor.run(
                until=lambda: connection.unsent <= _BACKLOG or not connection.is_open, timeout=self._timeout
            )
            if done != RunResult.DONE:
                raise ChannelClosed(_WHY[done].format(seconds=self._timeout))

    def receive(self) -> bytes:
        """Run the host until bytes have come; empty at the connection's end. Raises ChannelClosed."""
        received, connection = self._received, self._connection
        if not received and connection.is_open:
            done = self._hypervisor.run(until=lambda: bool(received) or not connection.is_open, timeout=self._timeout)
            if done != RunResult.DONE:
                raise ChannelClosed(_WHY[done].format(seconds=self._timeout))
        if not received:
            return b""
        data = received.popleft()
        connection.consumed(len(data))
        return data

    def close(self) -> None:
        """Give the connection up."""
        self._connection.close()
