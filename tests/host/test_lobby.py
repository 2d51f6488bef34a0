# SPDX-License-Identifier: GPL-2.0-or-later
"""How many the lobby has room for, and how fast it takes them in."""

from __future__ import annotations

import pytest

from veil.host.lobby import ACCEPTS, BURST, LOBBY, LOBBY_SHARE, Intake, lobby_size

PLACES = 256


def test_as_many_places_as_the_process_has_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(soft: int, hard: int) -> int:
        monkeypatch.setattr("resource.getrlimit", lambda _: (soft, hard))
        return lobby_size(PLACES)

    raised: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.setrlimit", lambda _, both: raised.append(both))
    assert limits(1 << 20, 1 << 20) == LOBBY
    assert raised == []
    assert limits(1024, 1 << 20) == LOBBY
    assert raised == [(LOBBY + PLACES + 512, 1 << 20)]
    assert limits(1024, 1024) == 1024 - PLACES - 512
    assert limits(64, 64) == 1


def test_the_pace() -> None:
    intake, now = Intake(lambda: now), 1000.0
    for _ in range(BURST):
        assert intake.opens <= now
        intake.took_one()
    intake.took_one()
    assert intake.opens > now
    now += 1 / ACCEPTS
    assert intake.opens <= now + 1e-9
    # What the lobby worked costs time, whatever the pace.
    intake.worked(0.3)
    assert intake.opens == pytest.approx(now + 0.3 / LOBBY_SHARE)
    now += 10
    intake.pause()
    assert intake.opens > now
