# SPDX-License-Identifier: GPL-2.0-or-later
"""Which compiler a kernel's driver is made by: this computer's or, run from the cache, Debian's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from veil.cache import Cache
from veil.guest.driver import compilers
from veil.guest.driver.compilers import build_tools, kernel_compiler, needed_glibc
from veil.guest.driver.headers import KernelHeaders
from veil.guest.errors import GuestImageError, NoDriverError
from veil.guest.linux.kernel import Kernel

_BANNER = (
    "Linux version 7.3.4+deb13-cloud-amd64 (debian-kernel@lists.debian.org) (x86_64-linux-gnu-gcc-{0} (Debian "
    "{0}.2.0-19) {0}.2.0, GNU ld (GNU Binutils for Debian) 2.44) # SMP PREEMPT_DYNAMIC Debian 7.3.4-1~bpo13+1"
)
_ELF = b"\x7fELF\2\1\1".ljust(64, b"\0")


_PROGRAMS = ("gcc-14", "gcc-12", "as", "ld", "ar", "nm", "objcopy", "objdump", "readelf")


class _Apt:
    """Suites with GCC 12 (as Debian 12 packs it), and 14."""

    asked: ClassVar[list[str | None]] = []
    complete = True

    def __init__(self, cache: Cache, *, suite: str | None = None) -> None:
        self.suite = suite
        self.asked.append(suite)

    def names(self, pattern: str, wanted: re.Pattern[str]) -> list[str]:
        names = ["gcc-12", "gcc-12-base"] if self.suite != "trixie" else ["gcc-14", "gcc-14-x86-64-linux-gnu"]
        return [name for name in names if re.search(pattern, name)]

    def dependencies(self, package: str) -> list[str]:
        return [package, "gcc-14-base", "libc6", "libmpc3" if "cpp" in package else "libctf0"]

    def unpack_all(self, packages: Sequence[str], directory: Path) -> None:
        programs = [f"usr/bin/x86_64-linux-gnu-{name}" for name in _PROGRAMS]
        programs += ["usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/share/doc/x"]
        programs += [
            f"usr/libexec/gcc/x86_64-linux-gnu/{version}/{name}" for version in (12, 14) for name in ("cc1", "collect2")
        ]
        for name in [*programs, *(["usr/bin/x86_64-linux-gnu-strip"] if self.complete else [])]:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(_ELF)
        (directory / "packages").write_text(" ".join(packages))


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelHeaders:
    """Of a kernel whose programs want glibc 2.38."""
    monkeypatch.setattr(compilers, "Apt", _Apt)
    monkeypatch.setattr(_Apt, "asked", [])
    found = KernelHeaders(tmp_path / "usr", "7.3.4+deb13-cloud-amd64", "7.3.4+deb13")
    place = found.kbuild / "scripts/mod/modpost"
    place.parent.mkdir(parents=True)
    place.write_bytes(_ELF + b"GLIBC_2.4\0GLIBC_2.38\0GLIBC_PRIVATE\0")
    place.chmod(0o755)
    (found.kbuild / "scripts/README").write_text("GLIBC_2.99")
    return found


def _at_hand(monkeypatch: pytest.MonkeyPatch, compiler: int | None, glibc: int) -> None:
    monkeypatch.setattr(compilers, "_version_at_hand", lambda: compiler)
    monkeypatch.setattr(compilers, "_own_glibc", lambda: glibc)


def _kernel(compiler: int, suite: str | None = "trixie-backports") -> Kernel:
    return Kernel(Path("vmlinux"), "7.3.4+deb13-cloud-amd64", _BANNER.format(compiler), None, "it", suite=suite)


def test_compilers_of_kernels() -> None:
    assert kernel_compiler(_BANNER.format(14)) == 14
    assert kernel_compiler("Linux version 6.1.0 (x@y) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld 2.40) #1") == 12
    assert kernel_compiler("Linux version 6.1.0 (me@here) (gcc (GCC) 15.1.0, GNU ld 2.40) #1") == 15
    assert kernel_compiler("Linux version 6.1.0 (me@here) (Debian clang version 19.1.7, Debian LLD 19.1.7) #1") is None
    assert kernel_compiler("Linux version 6.1.0") is None


def test_the_c_library_that_programs_name(headers: KernelHeaders) -> None:
    assert needed_glibc(headers.kbuild) == 38
    assert needed_glibc(headers.kbuild / "scripts/none") == 0


def test_at_hand(headers: KernelHeaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_hand(monkeypatch, 14, 38)
    tools = build_tools(Cache(tmp_path / "cache"), _kernel(14), headers, tmp_path / "tools", lambda _: None)
    assert tools.loader is None
    assert tools.commands["CC"] == "gcc"
    assert _Apt.asked == []
    assert not (tmp_path / "tools").exists()


@pytest.mark.parametrize(("compiler", "glibc"), [(12, 38), (16, 41), (None, 41), (14, 37), (14, 0)])
def test_another_one_or_an_older_c_library(
    headers: KernelHeaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: int | None, glibc: int
) -> None:
    _at_hand(monkeypatch, compiler, glibc)
    cache, said = Cache(tmp_path / "cache"), list[str]()
    tools = build_tools(cache, _kernel(14), headers, tmp_path / "tools", said.append)
    # Backports have no compilers of their own.
    assert _Apt.asked == ["trixie"]
    assert said == ["fetching gcc-14"]
    place = cache.lookup("compiler", "gcc-14-trixie")
    assert place is not None
    packages = "gcc-14-x86-64-linux-gnu cpp-14-x86-64-linux-gnu binutils-x86-64-linux-gnu libc6 libmpc3 libctf0"
    assert (place / "packages").read_text() == packages
    assert not (place / "usr/share").exists()
    assert tools.loader is not None
    assert tools.loader.loader == place / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    assert headers.libraries in tools.loader.libraries
    assert tools.files == (cache.manifest("compiler", "gcc-14-trixie"),)
    for name in ("CC", "LD", "AR", "NM", "OBJCOPY", "OBJDUMP", "READELF", "STRIP"):
        script = Path(tools.commands[name])
        assert script.parent == tmp_path / "tools"
        assert str(place) in script.read_text()
    # The compiler finds the scripts of what it starts.
    assert f"-B{tmp_path}/tools/" in Path(tools.commands["CC"]).read_text()
    assert {"cc1", "collect2", "as"} <= {item.name for item in (tmp_path / "tools").iterdir()}


def test_fetched_once(headers: KernelHeaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_hand(monkeypatch, 12, 36)
    cache = Cache(tmp_path / "cache")
    for turn in ("one", "two"):
        build_tools(cache, _kernel(14, "trixie"), headers, tmp_path / turn, lambda _: None)
    assert _Apt.asked == ["trixie"]


def test_packages_of_debian_12(headers: KernelHeaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_hand(monkeypatch, 14, 41)
    cache = Cache(tmp_path / "cache")
    tools = build_tools(cache, _kernel(12, "bookworm"), headers, tmp_path / "tools", lambda _: None)
    assert tools.loader is not None
    place = cache.lookup("compiler", "gcc-12-bookworm")
    assert place is not None
    assert (place / "packages").read_text().startswith("gcc-12 cpp-12 binutils-x86-64-linux-gnu ")


@pytest.mark.parametrize(
    ("banner", "message"),
    [
        ("Linux version 7.3.4 (Debian clang version 19.1.7, Debian LLD 19.1.7) #1", "GCC did not compile Linux 7.3.4"),
        (_BANNER.format(99), "no package gcc-99, the kernel's compiler, in trixie"),
    ],
)
def test_none_to_be_had(
    headers: KernelHeaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, banner: str, message: str
) -> None:
    _at_hand(monkeypatch, 12, 36)
    kernel = Kernel(Path("vmlinux"), "7.3.4+deb13-cloud-amd64", banner, None, "it", suite="trixie-backports")
    with pytest.raises(NoDriverError, match=message):
        build_tools(Cache(tmp_path / "cache"), kernel, headers, tmp_path / "tools", lambda _: None)


def test_packages_of_another_layout(headers: KernelHeaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_hand(monkeypatch, 12, 36)
    monkeypatch.setattr(_Apt, "complete", False)
    with pytest.raises(GuestImageError, match=r"gcc-14 has no strip in .*another layout"):
        build_tools(Cache(tmp_path / "cache"), _kernel(14), headers, tmp_path / "tools", lambda _: None)
