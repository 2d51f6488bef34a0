# SPDX-License-Identifier: GPL-2.0-or-later
"""A full disk is said to be full, whoever meets it; one is mounted where that is allowed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from veil.cache import Cache, CacheError
from veil.disk import is_full, refuse_full_disk, tool_environment
from veil.errors import describe
from veil.guest.agent.build import build_agent
from veil.snp import _engine_library, build_engine
from veil.snp._engine_core import run_tool
from veil.snp.errors import EngineBuildError

_FULL = r"the disk is full: cannot store .* in {place} .*veil cache clear.*XDG_CACHE_HOME"


@pytest.fixture
def little_room(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_words() -> None:
    assert describe(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == "the disk is full"
    assert describe(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))) == "the disk is full"
    assert describe(OSError(errno.EACCES, "Permission denied", "/x")) == "Permission denied"
    copied = shutil.Error([("/a", "/b", "[Errno 28] No space left on device: '/b'"), ("/c", "/d", "more")])
    assert describe(copied) == "the disk is full"
    assert describe(shutil.Error([("/a", "/b", "[Errno 13] Permission denied: '/b'")] * 90)).count("Errno") == 1
    assert not is_full(shutil.Error([("/a", "/b", "[Errno 13] Permission denied")]))


@pytest.mark.parametrize(
    "output",
    [
        "/tmp/ccX.s: fatal error: error writing to /tmp/ccX.s: No space left on device",
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        "E: Write error - write (28: No space left on device)",
        "dpkg-deb: error: paste subprocess: Disk quota exceeded",
    ],
)
def test_what_tools_say(tmp_path: Path, output: str) -> None:
    with pytest.raises(OSError, match="No space"):
        refuse_full_disk(output, tmp_path)
    refuse_full_disk("error: expected ';' before 'return'", tmp_path)


def test_tools_work_where_they_build_and_speak_english(tmp_path: Path) -> None:
    environment = tool_environment(tmp_path)
    assert (environment["TMPDIR"], environment["LC_ALL"]) == (str(tmp_path), "C")


def test_the_agents_compiler(little_room: Path) -> None:
    with pytest.raises(CacheError, match=_FULL.format(place=little_room)) as caught:
        build_agent(Cache(little_room))
    assert "\n" not in str(caught.value)


def test_the_machines_compiler(little_room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(little_room))
    source = tmp_path / "large.c"
    source.write_text("char large[300000] = {1};\n")

    def compile_engine(place: Path, sources: Path, work: Path, progress: object, *, counting: bool) -> Path:
        run_tool(["cc", "-c", "-o", "large.o", str(source)], work)
        return work / "large.o"

    monkeypatch.setattr(_engine_library, "compile_engine", compile_engine)
    with pytest.raises(EngineBuildError, match=_FULL.format(place=little_room / "veil")):
        build_engine()


def test_the_caches_own_writes(little_room: Path) -> None:
    def build(place: Path) -> None:
        (place / "large").write_bytes(bytes(1 << 20))

    with pytest.raises(CacheError, match=_FULL.format(place=little_room)):
        Cache(little_room).entry("kind", "key", build)
    assert not list((little_room / "tmp").iterdir())


def test_copies_of_trees(little_room: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / str(number)).write_bytes(bytes(1 << 18))

    def build(place: Path) -> None:
        shutil.copytree(source, place / "tree")

    with pytest.raises(CacheError, match=_FULL.format(place=little_room)):
        Cache(little_room).entry("kind", "key", build)
