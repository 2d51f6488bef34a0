# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch digest says what is in the image, not who made it where: two computers' images are the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.agent.build import agent_at_hand, build_agent
from veil.guest.driver.build import build_driver, build_intruder, driver_at_hand
from veil.guest.errors import GuestImageError
from veil.guest.linux.kernel import Kernel, debian_kernel
from veil.guest.toolchain import at_hand, built, compiler_version
from veil.snp import build_engine

# What a computer with another user makes of the same packages: digests of the parts and of the launch.
_BUILD = """
import os, sys
os.umask(int(sys.argv[1], 8))
from tests.guest.test_reproducible import image_digests
print("\\n".join(image_digests()))
"""
_FETCHED = ("kernel", "vmlinux", "package", "closure")
_SOMEBODY_ELSE = {
    "USER": "bjørn", "LOGNAME": "bjørn", "LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "LC_COLLATE": "de_DE",
    "TZ": "Pacific/Kiritimati", "umask": "000", "HOSTNAME": "two", "CFLAGS": "-O0", "KCFLAGS": "-O1",
    "CPATH": "/tmp", "MAKEFLAGS": "-j3", "ARCH": "arm64", "KBUILD_BUILD_USER": "bjørn", "SOURCE_DATE_EPOCH": "7",
    "GCC_COLORS": "error=01", "PYTHONHASHSEED": "5",
}  # fmt: skip


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return debian_kernel(Cache())


def _prepare(home: Path) -> Path:
    """A cache with the packages that the tests' own cache has fetched, and nothing that was compiled."""
    filled = Cache()
    place = home / ".cache" / "veil"
    place.mkdir(parents=True)
    for kind in _FETCHED:
        (place / kind).symlink_to(filled.root / kind)
    # The compiler sees these, so they really lie there.
    shutil.copytree(filled.root / "headers", place / "headers", symlinks=True, copy_function=os.link)
    engine = build_engine().parent
    shutil.copytree(engine, place / engine.name, ignore=shutil.ignore_patterns("build-*"))
    return place


def _image_of(home: Path, settings: dict[str, str]) -> list[str]:
    settings = dict(settings)
    umask = settings.pop("umask")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **settings}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, umask], env=environment, cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def image_digests() -> list[str]:
    """The launch's digest, and each region's."""
    image = ConfidentialVM(owners=[bytes(32)]).build_image()
    regions = (f"{item.name} {item.gpa:#x} {hashlib.sha256(item.data).hexdigest()}" for item in image.regions)
    return [image.digest().hex(), *regions]


@pytest.mark.e2e
def test_two_people_measure_the_same(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is whoever runs this test; what they compiled is in their cache."""
    monkeypatch.delenv("CC", raising=False)
    own = image_digests()
    home = tmp_path / "a-much-longer-place" / "home"
    cache = _prepare(home)
    assert _image_of(home, _SOMEBODY_ELSE) == own
    assert any(line.startswith("initramfs") for line in own)
    made = [path for kind in ("agent", "driver") for path in (cache / kind).rglob("*")]
    assert {"agent", "veil.ko"} <= {path.name for path in made}, "they were built there"
    assert [path for path in made if path.stat().st_mode & 0o077] == []
    assert not list((cache / "tmp").iterdir())


@pytest.mark.e2e
def test_no_path_and_no_build_id_is_in_the_modules(kernel: Kernel) -> None:
    cache = Cache()
    for module in (build_driver(cache, kernel), build_intruder(cache, kernel)):
        assert str(cache.root).encode() not in module
        assert b"/tmp/build-" not in module
        assert b".note.gnu.build-id" not in module


def test_a_program_is_built_again_when_what_it_read_changes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    header = tmp_path / "header.h"
    header.write_text("one")
    calls = []

    def build(directory: Path) -> list[Path]:
        calls.append(header.read_text())
        (directory / "program").write_text(header.read_text())
        return [header]

    assert at_hand(cache, "kind", "key") is None
    assert built(cache, "kind", "key", build) == built(cache, "kind", "key", build) == at_hand(cache, "kind", "key")
    # The same content with other times: as it was.
    os.utime(header, (5, 5))
    assert at_hand(cache, "kind", "key") is not None
    for content in ("two", "a longer one"):
        header.write_text(content)
        assert at_hand(cache, "kind", "key") is None
        assert (built(cache, "kind", "key", build) / "program").read_text() == content
    header.unlink()
    assert at_hand(cache, "kind", "key") is None
    assert calls == ["one", "two", "a longer one"]


def test_the_agent_knows_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another C library, header or compiler makes another agent: they are among what is looked at."""
    cache = Cache(tmp_path)
    assert agent_at_hand(cache) is None
    agent = build_agent(cache)
    assert agent_at_hand(cache) == agent
    inputs = (agent.parent / "inputs.json").read_text()
    for part in ("/libc.a", "/crt1.o", "/libgcc.a", "/cc1", "/stdio.h", "-ld"):
        assert part in inputs, part
    # Another compiler, though it be the same one by another name.
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/mycc"
    wrapper.write_text('#!/bin/sh\nexec cc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    assert agent_at_hand(cache) is None


@pytest.mark.e2e
def test_the_driver_knows_its_headers(kernel: Kernel) -> None:
    cache = Cache()
    build_driver(cache, kernel)
    place = driver_at_hand(cache, kernel.release)
    assert place is not None
    inputs = (place.parent / "inputs.json").read_text()
    assert str(cache.manifest("headers", kernel.release)) in inputs
    assert "/cc1" in inputs


@pytest.mark.e2e
def test_a_place_that_make_cannot_name_is_refused(kernel: Kernel, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "my home")
    cache.directory("headers").rmdir()
    shutil.copytree(Cache().root / "headers", cache.root / "headers", symlinks=True, copy_function=os.link)
    with pytest.raises(GuestImageError, match=r"paths with spaces.*\(set XDG_CACHE_HOME\)"):
        build_driver(cache, kernel)


def test_the_compiler_in_words() -> None:
    words = compiler_version("cc")
    assert "\n" not in words
    assert "ld" in words
    assert compiler_version("no-such-compiler") == "none"
