# SPDX-License-Identifier: GPL-2.0-or-later
"""A follower has entries on the disk before it looks again, and asks the CVM for no more than a head a look."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.services.log.desk import Client, Desk
from veil.formats.log import UserCall
from veil.formats.roles import Role
from veil.formats.status import Status
from veil.remote.channel.client import RequestFailed
from veil.remote.log.folder import LogFolder
from veil.remote.log.follow import follow_log


class Counting(Client):
    """A reader's channel that counts requests."""

    def __init__(self, desk: Desk, role: Role = Role.READER) -> None:
        super().__init__(desk, role)
        self.asked: Counter[int] = Counter()

    def request(self, service: Any, call: int, body: bytes = b"") -> bytes:
        self.asked[call] += 1
        return super().request(service, call, body)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_what_is_yielded_is_on_the_disk(desk: Desk, tmp_path: Path) -> None:
    """The machine may be gone in the next moment: what was made before a look stays."""
    folder, client = LogFolder(tmp_path / "log"), Counting(desk)
    numbers = iter(range(1, 100))
    made: list[int] = [desk.service.store.next]

    def sleep(seconds: float) -> None:
        assert seconds == 0.25
        for _ in range(len(made) % 3):
            desk.log(next(numbers))
        made.append(desk.service.store.next)

    following = follow_log(desk.reader(client=client), folder, interval=0.25, sleep=sleep, clock=lambda: 0.0)
    for look in range(8):
        head, entries = next(following)
        assert head.size == made[look]
        assert [entry.sequence for entry in entries] == list(range(made[look - 1] if look else 0, made[look]))
        assert [entry.sequence for entry in folder.verified()] == list(range(made[look]))
    fetches = sum(before != after for before, after in zip([0, *made], made, strict=False))
    assert client.asked == {UserCall.HEAD: 8, UserCall.FETCH: fetches}


def test_state_is_written_with_entries_and_once_a_second(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, now = LogFolder(tmp_path / "log"), [0.0]
    written: list[int] = []

    def sleep(seconds: float) -> None:
        now[0] += seconds
        desk.now += int(seconds * 1e9)

    add = folder.add
    monkeypatch.setattr(folder, "add", lambda *args: written.append(add(*args)))
    reader = desk.reader(client=Counting(desk))
    following = follow_log(reader, folder, interval=0.125, sleep=sleep, clock=lambda: now[0])
    for _ in range(25):
        head, _ = next(following)
    assert written == [1, 0, 0, 0], "at 0, 1, 2 and 3 seconds"
    known = folder.known()
    assert known is not None
    assert known.seen is not None
    assert known.seen.head.time_ns == head.time_ns


def test_a_stranger_cannot_follow(desk: Desk, tmp_path: Path) -> None:
    folder = LogFolder(tmp_path / "log")
    with pytest.raises(RequestFailed) as caught:
        next(follow_log(desk.reader(client=Counting(desk, Role.ANYONE)), folder))
    assert caught.value.status == Status.NOT_ALLOWED
    assert folder.known() is None
