# SPDX-License-Identifier: GPL-2.0-or-later
"""The host around a machine: what its user is told of it, and how long a boot may take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from veil.cvm import Configuration, running


def test_what_a_guest_repeats_is_told_once() -> None:
    told: list[str] = []
    tell = running._once(told.append)
    for number in (1, 2, 1, 2, 3):
        tell(f"disk: {number}")
    assert told == ["disk: 1", "disk: 2", "disk: 3"]


def test_nor_can_it_go_on_with_other_words() -> None:
    told: list[str] = []
    tell = running._once(told.append)
    for number in range(1000):
        tell(f"disk: {number}")
    assert len(told) == running._MAX_TOLD


@pytest.mark.parametrize(
    ("firmware", "stops", "longer_than"), [(None, False, 0.0), ("OVMF.fd", False, 180.0), (None, True, 86_400.0)]
)
def test_a_boot_has_the_time_that_it_takes(firmware: str | None, stops: bool, longer_than: float) -> None:
    chosen: Any = SimpleNamespace(firmware=firmware)
    tool: Any = SimpleNamespace(stops=stops)
    assert running.boot_timeout(chosen, [tool]) > longer_than
    assert running.boot_timeout(Configuration(), []) == 180.0
