# SPDX-License-Identifier: GPL-2.0-or-later
"""Suites that are not the configured ones: which lists are fetched for them, and packages in one call."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from veil.cache import Cache
from veil.guest.apt import Apt
from veil.guest.errors import GuestImageError
from veil.guest.packages import unpacked_packages

_APT = """#!/bin/sh
echo "$(basename "$0") $@" >> "$LOG"
case "$*" in
*indextargets*) echo "$MIRRORS";;
*update*) for word; do case $word in Dir::State::lists=*) touch "${word#*=}/x_Packages";; esac; done
    touch "$LOG.updated";;
*" search "*) [ -e "$LOG.updated" ] && echo "gcc-14 - a compiler";;
*download*) for name; do case $name in gcc*|lib*) echo deb > "${name}_1%3a2_all.deb";; esac; done
    [ -z "$LACKS" ] || rm "$LACKS"_*.deb;;
esac
exit 0
"""
_MIRRORS = "http://d.example/debian\nhttp://s.example/debian-security/\nhttp://o.example/other"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"apt-get": _APT, "apt-cache": _APT, "dpkg-deb": '#!/bin/sh\ncp "$2" "$3"\n'}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("MIRRORS", _MIRRORS)
    monkeypatch.setenv("LACKS", "")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def _fetch_lists(cache: Cache, suite: str) -> list[str]:
    """The lines of the sources, without options."""
    assert Apt(cache, suite=suite).names("^gcc", re.compile("gcc-14")) == ["gcc-14"]
    lines = (cache.root / f"apt-{suite}/sources.list").read_text().splitlines()
    return [re.sub(r" \[.*?\]", "", line) for line in lines]


def test_a_suite_comes_with_what_it_builds_upon(log: Path, cache: Cache) -> None:
    assert _fetch_lists(cache, "trixie-backports") == [
        "deb http://d.example/debian trixie main",
        "deb http://d.example/debian trixie-backports main",
        "deb http://s.example/debian-security/ trixie-security main",
    ]
    # What is installed on this computer is no candidate there.
    updates = [line for line in log.read_text().splitlines() if line.split()[-2:-1] == ["update"]]
    assert len(updates) == 1
    assert "Dir::State::status=/dev/null" in updates[0]


def test_sid_has_no_security_updates(log: Path, cache: Cache) -> None:
    assert _fetch_lists(cache, "sid") == ["deb http://d.example/debian sid main"]


def test_a_mirror_without_security_updates(log: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRRORS", "http://d.example/debian/")
    assert _fetch_lists(cache, "trixie") == ["deb http://d.example/debian/ trixie main"]


def test_no_mirror_of_debian(log: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRRORS", "http://o.example/other")
    with pytest.raises(GuestImageError, match="no mirror of Debian configured, so there is no trixie"):
        _fetch_lists(cache, "trixie")


def _downloads(log: Path) -> int:
    return len([line for line in log.read_text().splitlines() if " download " in line])


def test_several_packages_with_one_call(
    log: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    Apt(cache).unpack_all(["gcc-14", "libc6"], place)
    assert sorted(item.name for item in place.iterdir()) == ["gcc-14_1%3a2_all.deb", "libc6_1%3a2_all.deb"]
    assert _downloads(log) == 1
    monkeypatch.setenv("LACKS", "libc6")
    with pytest.raises(GuestImageError, match="cannot download gcc-14, libc6"):
        Apt(cache).unpack_all(["gcc-14", "libc6"], place)


def test_what_is_missing_is_kept_package_by_package(log: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = unpacked_packages(cache, ["libc6"])
    said: list[str] = []
    assert [place.name for place in unpacked_packages(cache, ["gcc-14", "libc6", "libm"], said.append)] == [
        "gcc-14_1_2_all", "libc6_1_2_all", "libm_1_2_all",
    ]  # fmt: skip
    assert said == ["fetching gcc-14, libm"]
    assert _downloads(log) == 2
    assert unpacked_packages(cache, ["libm", "libc6"])[1] == first
    assert _downloads(log) == 2
    # One that is damaged is fetched again.
    (first / "libc6_1%3a2_all.deb").write_text("other")
    assert unpacked_packages(cache, ["libc6"]) == [first]
    assert (first / "libc6_1%3a2_all.deb").read_text() == "deb\n"
    monkeypatch.setenv("LACKS", "libz")
    with pytest.raises(GuestImageError, match="cannot download gcc-13, libz"):
        unpacked_packages(cache, ["gcc-13", "libz"])
