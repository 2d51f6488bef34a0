# SPDX-License-Identifier: GPL-2.0-or-later
"""The first are told, and then each doubling."""

from __future__ import annotations

import pytest

from veil.services.repetition import is_told


@pytest.mark.parametrize(("all_told", "told"), [(0, [1, 2, 4, 8, 16, 32]), (3, [1, 2, 3, 4, 8, 16, 32])])
def test_the_first_and_each_doubling(all_told: int, told: list[int]) -> None:
    assert [count for count in range(1, 40) if is_told(count, all_told)] == told


def test_none_happened_is_not_one_too_many() -> None:
    assert is_told(0, 0)
