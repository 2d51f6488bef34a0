# SPDX-License-Identifier: GPL-2.0-or-later
"""Which suites are asked for what belongs to a kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from veil.cache import Cache
from veil.guest.driver import headers
from veil.guest.driver.headers import kernel_headers, suites_of
from veil.guest.errors import NoDriverError
from veil.guest.linux.kernel import Kernel

_OFFERS = {
    None: ["linux-headers-6.12.9+deb12-cloud-amd64"],
    "trixie": ["linux-headers-6.12.9+deb13-amd64"],
    "trixie-backports": ["linux-headers-7.3.4+deb13-cloud-amd64"],
}


class _Apt:
    asked: ClassVar[list[str | None]] = []

    def __init__(self, cache: Cache, *, suite: str | None = None) -> None:
        self.suite = suite
        self.asked.append(suite)

    def names(self, pattern: str, wanted: re.Pattern[str]) -> list[str]:
        return [name for name in _OFFERS.get(self.suite, []) if re.search(pattern, name)]

    def dependencies(self, package: str) -> list[str]:
        return [package, "libc6", "libelf1t64", "zlib1g"]

    def unpack_all(self, packages: Sequence[str], directory: Path) -> None:
        (directory / "usr").mkdir()
        (directory / "usr/packages").write_text(" ".join(packages))


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "Apt", _Apt)
    monkeypatch.setattr(headers, "host_codename", lambda: "bookworm")
    monkeypatch.setattr(_Apt, "asked", [])


def _kernel(release: str, suite: str | None = None) -> Kernel:
    return Kernel(Path("vmlinux"), release, "", None, "a kernel", suite=suite)


def _asked(release: str, suite: str | None = None) -> tuple[str | None, ...]:
    return suites_of(_kernel(release, suite))


def test_suites_of_a_kernel(apt: None) -> None:
    assert _asked("6.12.9+deb13-amd64", "trixie") == ("trixie",)
    assert _asked("6.12.9+deb12-cloud-amd64") == (None, "bookworm", "bookworm-backports")
    assert _asked("7.3.4+deb13-cloud-amd64") == ("trixie", "trixie-backports")
    assert _asked("6.12.90+deb13.1-amd64") == ("trixie", "trixie-backports")
    assert _asked("7.2.13+deb14-amd64") == ("forky", "sid", "forky-backports")
    # No Debian is named, or one that nobody knows yet.
    assert _asked("6.1.0-50-amd64") == (None,)
    assert _asked("9.9.9+deb17-amd64") == (None,)


@pytest.mark.parametrize(
    ("release", "suites", "version"),
    [
        ("6.12.9+deb12-cloud-amd64", [None], "6.12.9+deb12"),
        ("6.12.9+deb13-amd64", ["trixie"], "6.12.9+deb13"),
        ("7.3.4+deb13-cloud-amd64", ["trixie", "trixie-backports"], "7.3.4+deb13"),
    ],
)
def test_fetched_from_the_first_that_has_them(
    apt: None, tmp_path: Path, release: str, suites: list[str | None], version: str
) -> None:
    cache = Cache(tmp_path / "cache")
    found = kernel_headers(cache, _kernel(release), lambda _: None)
    assert _Apt.asked == suites
    fetched = (found.folder / "packages").read_text().split()
    wanted = [f"linux-headers-{release}", f"linux-headers-{version}-common", f"linux-kbuild-{version}", "libelf1t64"]
    assert fetched == wanted
    assert found.tree == found.folder / f"src/linux-headers-{release}"
    assert found.kbuild == found.folder / f"lib/linux-kbuild-{version}"
    kernel_headers(cache, _kernel(release), lambda _: None)
    assert _Apt.asked == suites, "headers that are there need no apt"


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (_kernel("6.12.3-mine"), "not one of Debian's kernels"),
        (_kernel("6.12.9+deb12-rt-amd64"), "not one of Debian's kernels"),
        (_kernel("7.1.13+deb13-cloud-amd64"), "in trixie, trixie-backports: Debian keeps those of its newest"),
        (_kernel("6.12.8+deb12-amd64"), "in the configured Debian, bookworm, bookworm-backports:"),
        (_kernel("7.1.13+deb13-amd64", "trixie-backports"), "in trixie-backports: Debian keeps"),
    ],
)
def test_none_to_be_had(apt: None, tmp_path: Path, kernel: Kernel, message: str) -> None:
    with pytest.raises(NoDriverError, match=message):
        kernel_headers(Cache(tmp_path / "cache"), kernel, lambda _: None)
