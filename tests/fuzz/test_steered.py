# SPDX-License-Identifier: GPL-2.0-or-later
"""A target that says itself what inputs reach is searched step by step."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.steered import steer
from fuzz.target import Target

#: An input that begins so is a mistake of the target's.
_WORD = b"\1\2"
_INPUTS = 3_000


class _Walk:
    """How much of the word inputs began with so far."""

    def __init__(self) -> None:
        self.reached = 0

    def run(self, data: bytes) -> None:
        step = next((at for at, (one, other) in enumerate(zip(data, _WORD, strict=False)) if one != other), len(_WORD))
        if len(data) >= len(_WORD):
            self.reached = max(self.reached, step)
            assert step < len(_WORD), "the word is there"


def _steer(tmp_path: Path, walk: _Walk, reached: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    ticks = itertools.count()
    monkeypatch.setattr("fuzz.steered.time.monotonic", lambda: float(next(ticks)))
    folders = [tmp_path / name for name in ("findings", "corpus")]
    for folder in folders:
        folder.mkdir()
    target = Target("walk", walk.run, lambda: [bytes(8)], max_bytes=8, reached=reached)
    steer(target, folders[0], folders[1], _INPUTS, random.Random(1))
    return folders


def test_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    walk = _Walk()
    findings, corpus = _steer(tmp_path, walk, lambda: walk.reached, monkeypatch)
    assert [path.read_bytes()[:2] for path in findings.iterdir()] == [_WORD]
    assert len(list(corpus.iterdir())) >= 1
    said = capsys.readouterr().out
    assert said.count("AssertionError: the word is there") == 1
    assert "inputs so far: " in said


def test_one_that_sees_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: no input is kept, and none leads to the next step."""
    findings, corpus = _steer(tmp_path, _Walk(), lambda: 0, monkeypatch)
    assert not list(findings.iterdir())
    assert not list(corpus.iterdir())
