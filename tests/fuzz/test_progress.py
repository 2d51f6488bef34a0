# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said while a target runs."""

from __future__ import annotations

import re

import pytest

from fuzz import progress
from fuzz.progress import PULSE, Progress


def test_how_it_stands() -> None:
    one = Progress("a-target")
    assert re.fullmatch(r"a-target: \d+ s, getting ready", one.words())
    one.hear([f"{PULSE}0\n", "a-target: something (here)\n", f"{PULSE}120\n"])
    assert one.findings == ["a-target: something (here)"]
    # In less than a second: so many a second there were at least.
    one._first = (one._first or 0.0) - 10
    found = re.fullmatch(r"a-target: \d+ s, 120 inputs, ([\d.]+) a second, 1 findings", one.words())
    assert found is not None
    assert 0 < float(found[1]) <= 12


def test_it_is_said_again_and_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing has come yet, and nobody asks."""
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.01)
    with Progress("a-target") as one:
        one._done.wait(0.0)
        while "getting ready\na-target" not in (said := capsys.readouterr().err):
            one._done.wait(0.1)
    assert re.match(r"a-target: \d+ s, getting ready\n", said)
