# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the host's tests."""

from __future__ import annotations

import pytest

from tests.host.fakes import PAGE, SHARED, Guest


@pytest.fixture(params=["fast", "observed"])
def guest(request: pytest.FixtureRequest) -> Guest:
    """With an observer the host takes the general path, which must answer alike."""
    guest = Guest()
    guest.view.private[SHARED // PAGE] = False
    if request.param == "observed":
        guest.host.on_event = lambda event: None
    return guest
