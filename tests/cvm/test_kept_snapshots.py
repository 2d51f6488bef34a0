# SPDX-License-Identifier: GPL-2.0-or-later
"""Which snapshots are kept, and for what they are found again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from veil.cache import Cache
from veil.cvm import Configuration, kept_snapshots
from veil.cvm.disks import READ_ONLY, TEMPORARY, WRITE, Disk
from veil.cvm.kept_snapshots import KeptSnapshots

_PARTS = {"agent": "1", "kernel": "2"}


@pytest.fixture
def kept(tmp_path: Path) -> KeptSnapshots:
    return KeptSnapshots(Cache(tmp_path / "cache"))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the place of ours."""
    root = tmp_path / "veil"
    for name in ("cvm/kept_snapshots.py", "cli/run.py", "guest/agent.c", "guest/script", "guest/old.pyc"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("before")
    monkeypatch.setattr(kept_snapshots, "__file__", str(root / "cvm/kept_snapshots.py"))
    return root


def test_a_place_is_for_one_configuration_and_its_parts(kept: KeptSnapshots) -> None:
    place = kept.place(Configuration(), _PARTS)
    assert kept.place(Configuration(), dict(reversed(_PARTS.items()))) == place
    assert kept.place(Configuration(vcpus=2), _PARTS) != place
    assert kept.place(Configuration(), _PARTS | {"agent": "3"}) != place


def test_no_place_while_parts_are_not_at_hand(kept: KeptSnapshots) -> None:
    assert kept.place(Configuration(), None) is None


@pytest.mark.parametrize(("mode", "kept_one"), [(READ_ONLY, True), (TEMPORARY, True), (WRITE, False)])
def test_no_place_for_a_guest_that_changes_an_image(kept: KeptSnapshots, mode: str, kept_one: bool) -> None:
    chosen = Configuration(disks=(Disk("/images/one", mode),))
    assert (kept.place(chosen, _PARTS) is not None) == kept_one


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("cvm/kept_snapshots.py", True),
        ("guest/agent.c", True),
        ("guest/script", True),
        ("guest/new.S", True),
        ("guest/old.pyc", False),
        ("cli/run.py", False),
        ("cli/new.py", False),
    ],
)
def test_what_of_the_package_matters(kept: KeptSnapshots, sources: Path, name: str, matters: bool) -> None:
    place = kept.place(Configuration(), _PARTS)
    (sources / name).write_text("after")
    assert (kept.place(Configuration(), _PARTS) != place) == matters


def test_the_most_recently_used_are_kept(kept: KeptSnapshots) -> None:
    place = kept.place(Configuration(), _PARTS)
    assert place is not None
    folder = place.parent
    for number in range(12):
        (folder / f"{number}.snapshot").write_bytes(b"")
        os.utime(folder / f"{number}.snapshot", (number, number))
    (folder / "other").write_bytes(b"")
    kept.prune()
    assert {path.name for path in folder.iterdir()} == {"other", *(f"{number}.snapshot" for number in range(4, 12))}
