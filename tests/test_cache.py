# SPDX-License-Identifier: GPL-2.0-or-later
import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from veil.cache import Cache, CacheError, cache_directory, cache_key


class Builder:
    def __init__(self, data: bytes = b"contents") -> None:
        self.data = data
        self.calls = 0

    def __call__(self, directory: Path) -> None:
        self.calls += 1
        (directory / "sub").mkdir()
        (directory / "sub/file").write_bytes(self.data)
        (directory / "link").symlink_to("sub/file")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "veil")


def test_built_once(cache: Cache) -> None:
    build = Builder()
    place = cache.entry("kind", "key", build)
    assert (place / "sub/file").read_bytes() == b"contents"
    assert cache.entry("kind", "key", build) == place == cache.lookup("kind", "key")
    assert build.calls == 1
    assert cache.keys("kind") == ["key"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "link", "manifest", "no manifest", "odd manifest"])
def test_damage_is_repaired(cache: Cache, damage: str) -> None:
    build = Builder()
    place = cache.entry("kind", "key", build)
    match damage:
        case "flip":
            (place / "sub/file").write_bytes(b"contenTs")
        case "cut":
            (place / "sub/file").write_bytes(b"")
        case "missing":
            (place / "sub/file").unlink()
        case "link":
            (place / "link").unlink()
            (place / "link").symlink_to("/etc/passwd")
        case "manifest":
            (place / ".manifest.json").write_text('{"sub')
        case "no manifest":
            (place / ".manifest.json").unlink()
        case "odd manifest":
            (place / ".manifest.json").write_text('["sub"]')
    assert cache.lookup("kind", "key") is None
    assert (cache.entry("kind", "key", build) / "sub/file").read_bytes() == b"contents"
    assert build.calls == 2
    assert cache.lookup("kind", "key")


def test_without_verification_only_sizes_count(cache: Cache) -> None:
    place = cache.entry("kind", "key", Builder())
    (place / "sub/file").write_bytes(b"contenTs")
    assert cache.lookup("kind", "key", verify=False)
    assert not cache.lookup("kind", "key")


def test_failed_build_leaves_nothing(cache: Cache) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.entry("kind", "key", fail)
    assert cache.keys("kind") == []
    assert not list((cache.root / "tmp").iterdir())


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot write"),
                                               (errno.EIO, "cannot store")])  # fmt: skip
def test_system_errors_are_one_line(cache: Cache, number: int, words: str) -> None:
    def fail(directory: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(CacheError, match=words) as caught:
        cache.entry("kind", "key", fail)
    assert str(cache.root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unwritable_root() -> None:
    with pytest.raises(CacheError, match=r"cannot (write|store)"):
        Cache(Path("/proc/veil")).entry("kind", "key", Builder())


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "x" * 300])
def test_names_cannot_lead_out(cache: Cache, name: str) -> None:
    with pytest.raises(CacheError, match="bad cache name"):
        cache.entry("kind", name, Builder())


def test_prune_keeps_the_last_used(cache: Cache) -> None:
    for number, key in enumerate("abcd"):
        os.utime(cache.entry("kind", key, Builder()), (1000 + number, 1000 + number))
    cache.lookup("kind", "a")
    cache.prune("kind", 2)
    assert set(cache.keys("kind")) == {"a", "d"}


def test_stale_rubbish_is_swept(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    old = cache.directory("tmp") / "build-old"
    old.mkdir()
    # What is built here has a package's time, as dpkg-deb sets it, while another process sweeps.
    os.utime(old, (0, 0))
    cache.entry("kind", "one", Builder())
    assert old.exists()
    later = time.time() + 2 * 24 * 3600
    monkeypatch.setattr("veil.cache.time.time", lambda: later)
    cache.entry("kind", "two", Builder())
    assert not old.exists()


def _build_slowly(root: Path, log: Path) -> None:
    def build(directory: Path) -> None:
        with open(log, "a") as stream:
            stream.write("built\n")
        (directory / "file").write_bytes(bytes(1000))

    Cache(root).entry("kind", "key", build)


def test_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_slowly, args=(tmp_path / "c", tmp_path / "log")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"


def test_keys_tell_parts_apart() -> None:
    assert cache_key("ab", "c") != cache_key("a", "bc") != cache_key("abc")


def test_relative_xdg_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/.cache/veil")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_directory() == Path("/cache/veil")
