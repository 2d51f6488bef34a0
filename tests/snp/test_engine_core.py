# SPDX-License-Identifier: GPL-2.0-or-later
"""The core is built once for all versions of our own C code, and again when it is damaged or half built."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.snp import _engine_core, _engine_edits
from veil.snp._engine_core import LIBRARIES, core
from veil.snp.errors import EngineBuildError


class Builds:
    """In the compiler's place: counts, and makes libraries of a few bytes."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False

    def __call__(self, engine_dir: Path, source_cache: Path, work: Path, progress: object, counting: bool) -> Path:
        self.count += 1
        for name in ("source", "build"):
            (work / name).mkdir()
        (work / "source" / "cpu.h").write_text("#define CPU 1\n")
        for name in LIBRARIES:
            (work / "build" / name).write_text(f"{name} {counting}")
            if self.fails:
                raise EngineBuildError("the compiler found an error")
        return work


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds()
    monkeypatch.setattr(_engine_core, "_build", made)
    return made


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "engine" / "shadow" / "exec").mkdir(parents=True)
    (tmp_path / "engine" / "shadow" / "exec" / "tb-hash.h").write_text("#define SIZE 1\n")
    (tmp_path / "engine" / "ours.c").write_text("int one;\n")
    return tmp_path / "engine"


def _quiet(_: str) -> None:
    """Nobody listens."""


def test_our_own_code_does_not_count(builds: Builds, engine: Path, tmp_path: Path) -> None:
    place = core(engine, tmp_path / "cache", _quiet)
    (engine / "ours.c").write_text("int two;\n")
    assert core(engine, tmp_path / "cache", _quiet) == place
    assert builds.count == 1


def test_what_it_is_built_from_counts(
    builds: Builds, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = core(engine, tmp_path / "cache", _quiet)
    counting = core(engine, tmp_path / "cache", _quiet, counting=True)
    (engine / "shadow" / "exec" / "tb-hash.h").write_text("#define SIZE 2\n")
    other = core(engine, tmp_path / "cache", _quiet)
    (tmp_path / "_engine_edits.py").write_text("EDITS = ()\n")
    monkeypatch.setattr(_engine_edits, "__file__", str(tmp_path / "_engine_edits.py"))
    edited = core(engine, tmp_path / "cache", _quiet)
    assert len({first, counting, other, edited}) == builds.count == 4


@pytest.mark.parametrize("name", [*LIBRARIES, "../source/cpu.h", "../files.sha256"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damage_is_mended(builds: Builds, engine: Path, tmp_path: Path, name: str, damage: str) -> None:
    place = core(engine, tmp_path / "cache", _quiet)
    path = place / "build" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-1] if damage == "cut" else bytes((content[0] ^ 1,)) + content[1:])
    assert core(engine, tmp_path / "cache", _quiet) == place
    assert (builds.count, path.read_bytes()) == (2, content)


def test_a_build_that_fails_leaves_nothing(builds: Builds, engine: Path, tmp_path: Path) -> None:
    builds.fails = True
    with pytest.raises(EngineBuildError):
        core(engine, tmp_path / "cache", _quiet)
    builds.fails = False
    place = core(engine, tmp_path / "cache", _quiet)
    assert builds.count == 2
    assert sorted(path.name for path in place.iterdir()) == ["build", "files.sha256", "lock", "source"]


def test_what_killed_builds_left_goes(builds: Builds, engine: Path, tmp_path: Path) -> None:
    place = core(engine, tmp_path / "cache", _quiet)
    (place / "files.sha256").unlink()
    (place / "build-killed" / "source").mkdir(parents=True)
    assert core(engine, tmp_path / "cache", _quiet) == place
    assert sorted(path.name for path in place.iterdir()) == ["build", "files.sha256", "lock", "source"]
