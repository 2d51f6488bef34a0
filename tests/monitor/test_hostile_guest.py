# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a guest puts into its registers and calling areas, and whatever its host does meanwhile: no permission that
the guest must not have, no context that the monitor did not check, and never an exception."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.monitor.hostile_moves import (
    Play,
    operations,
)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operations, min_size=1, max_size=30))
def test_invariants(moves: list[tuple[Any, ...]]) -> None:
    play = Play()
    for name, *arguments in moves:
        getattr(play, name)(*arguments)
        play.check()
