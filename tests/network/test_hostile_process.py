# SPDX-License-Identifier: GPL-2.0-or-later
"""The network's process in the hands of a guest that has broken libslirp: it holds nobody up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.network.frames import FakeCard, ping
from veil.network import UserNetwork, link

_PROGRAM = """
import socket, sys, time
link = socket.socket(fileno=int(sys.argv[-2]))
link.send(b"{}")
link.recv(4096)
WORK
time.sleep(600)
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Iterator[FakeCard]:
    monkeypatch.setattr(link, "_PROGRAM", _PROGRAM.replace("WORK", request.param))
    monkeypatch.setattr(link, "_END_TIMEOUT", 0.1)
    with closing(UserNetwork()) as network:
        network.on_end = said.append
        yield FakeCard(network)


def _is_there(process: int) -> bool:
    return os.path.exists(f"/proc/{process}")


@pytest.mark.parametrize(
    "card",
    ["link.send(b'')", "link.shutdown(socket.SHUT_WR)", "link.close()"],
    indirect=True,
    ids=["empty", "half", "all"],
)
def test_it_says_that_it_is_gone_and_stays(card: FakeCard, said: list[str]) -> None:
    process = card.network._process.pid
    card.wait(lambda: bool(said))
    assert card.unplugged
    assert said == ["the guest's network is gone: its process ended (signal 9)"]
    assert not _is_there(process)
    assert card.network.send(ping(1)), "it is lost"


@pytest.mark.parametrize("card", ["pass"], indirect=True, ids=["deaf"])
def test_it_takes_nothing_and_does_not_end(card: FakeCard) -> None:
    sent = 0
    while card.network.send(ping(sent)):
        sent += 1
        assert sent < 100_000
    process = card.network._process.pid
    card.network.close()
    assert not _is_there(process)


@pytest.mark.parametrize("card", ["while True: link.send(b'x' * 60)"], indirect=True, ids=["flood"])
def test_what_it_sends_without_end_waits_with_it(card: FakeCard) -> None:
    with card._changed:
        card.busy = True
        before = len(card.frames)
        assert card._changed.wait_for(lambda: len(card.frames) > before, 5)
        assert not card._changed.wait_for(lambda: len(card.frames) > before + 64, 0.2)
