# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the host's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.desk import PLACES, Desk
from tests.host.fakes import PAGE, SHARED, Guest
from veil.host import channel_listener


@pytest.fixture(params=["fast", "observed"])
def guest(request: pytest.FixtureRequest) -> Guest:
    """With an observer the host takes the general path, which must answer alike."""
    guest = Guest()
    guest.view.private[SHARED // PAGE] = False
    if request.param == "observed":
        guest.host.on_event = lambda event: None
    return guest


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(channel_listener, "STRANGERS", PLACES)
    made = Desk()
    yield made
    made.close()
