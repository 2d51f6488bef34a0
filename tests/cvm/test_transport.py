# SPDX-License-Identifier: GPL-2.0-or-later
"""A user without a network: an end, a wait that took too long and a host that was stopped are told apart."""

from __future__ import annotations

from typing import Any

import pytest

from veil.cvm.transport import VmTransport
from veil.host import RunResult
from veil.remote import ChannelClosed


class Connection:
    on_data = None
    is_open = True
    unsent = 0

    def send(self, data: bytes) -> None:
        self.unsent += len(data)


class Host:
    def __init__(self, result: RunResult, connection: Connection) -> None:
        self._result, self._connection = result, connection

    def run(self, until: Any, timeout: float) -> RunResult:
        if self._result == RunResult.DONE:
            self._connection.is_open = False
        return self._result


def transport(result: RunResult) -> VmTransport:
    connection: Any = Connection()
    host: Any = Host(result, connection)
    return VmTransport(host, connection, timeout=2.5)


def test_the_end_of_a_connection_is_one() -> None:
    assert transport(RunResult.DONE).receive() == b""


@pytest.mark.parametrize(
    ("result", "words"), [(RunResult.TIMEOUT, "did not answer within 2.5 seconds"), (RunResult.STOPPED, "was stopped")]
)
def test_no_answer_is_not_an_end(result: RunResult, words: str) -> None:
    with pytest.raises(ChannelClosed, match=words):
        transport(result).receive()
    with pytest.raises(ChannelClosed, match=words):
        transport(result).send(bytes(1 << 20))
