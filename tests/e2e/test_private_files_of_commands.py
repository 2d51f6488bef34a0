# SPDX-License-Identifier: GPL-2.0-or-later
"""Real commands with the widest umask leave nothing that other users could touch."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.snapshots import boots, keep_copy, linked_cache
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Configuration

_COMMANDS = (
    ("run", "--get", "/etc/hostname:name", "--get", "/bin/busybox:tool", "--", "true"),
    ("run", "--", "true"),
    ("measure", "--log", "launch.log"),
    ("inspect", "--png", "map.png"),
)
_RUN = "import os, sys; os.umask(0); from veil.cli import main; main()"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.soak
@pytest.mark.usefixtures("booted")  # so that all is fetched
def test_commands_leave_nothing_open(tmp_path: Path) -> None:
    filled, cache, work = Cache().root, tmp_path / "cache", tmp_path / "work"
    (cache / "veil").mkdir(parents=True)
    # What an earlier version left, in a cache that was open to all.
    (cache / "veil" / "snapshots").mkdir()
    (cache / "veil" / "snapshots" / "old.snapshot").write_bytes(b"keys")
    for path in (cache / "veil", cache / "veil/snapshots"):
        path.chmod(0o777)
    (cache / "veil/snapshots/old.snapshot").chmod(0o666)
    # A driver that is built under such an umask: tests/guest/test_reproducible.py.
    for kind in ("kernel", "vmlinux", "package", "headers", "closure", "driver"):
        (cache / "veil" / kind).symlink_to(filled / kind)
    for engine in filled.glob("engine-*"):
        (cache / "veil" / engine.name).symlink_to(engine)
    work.mkdir()
    (work / "launch.log").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("mine")
    environment = {
        **os.environ, "XDG_CACHE_HOME": str(cache), "XDG_DATA_HOME": str(tmp_path / "share"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    for command in _COMMANDS:
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *command], cwd=work, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    made = [path for root in (cache / "veil", tmp_path / "share", work) for path in root.rglob("*")]
    assert {path.name for path in work.iterdir()} == {"name", "tool", "launch.log", "map.png"}
    assert len([path for path in made if path.suffix == ".snapshot"]) >= 2
    assert len([path for path in made if path.name in ("agent", "user.key", "ark.key")]) >= 3
    wide = [f"{_mode(path):o} {path}" for path in made if not path.is_symlink() and _mode(path) & 0o077]
    assert wide == []
    assert [_mode(cache / "veil"), _mode(tmp_path / "share/veil"), _mode(work / "tool")] == [0o700] * 3
    # The link was replaced, not followed.
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (work / "launch.log").is_symlink()


def test_a_snapshot_that_others_could_read_is_not_used(booted: Path, tmp_path: Path) -> None:
    cache = linked_cache(tmp_path / "cache")
    path = keep_copy(booted, Configuration.make(), cache)
    assert _mode(path) == 0o600
    assert not boots(ConfidentialVM(cache=cache))
    said: list[str] = []
    path.chmod(0o644)
    assert boots(ConfidentialVM(cache=cache, progress=said.append))
    assert any("others could get at it" in line for line in said)
    assert not path.exists()


@pytest.mark.usefixtures("booted")
def test_another_driver_or_agent_has_another_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = ConfidentialVM()
    path, parts = vm._snapshot_path(), vm.ingredients()
    assert path is not None
    assert parts is not None
    assert {"agent", "driver"} <= parts.keys()
    for part in ("agent", "driver"):
        monkeypatch.setattr(vm, "ingredients", lambda part=part: {**parts, part: "0" * 64})
        assert vm._snapshot_path() != path
    monkeypatch.setattr(vm, "ingredients", lambda: None)
    assert vm._snapshot_path() is None
