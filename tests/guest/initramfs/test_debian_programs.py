# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs out of packages: which libraries, out of which packages, with which links."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from veil.cache import Cache
from veil.guest.apt import Apt
from veil.guest.elf import parse_linking
from veil.guest.enclaves.trusted_files import DebianFiles
from veil.guest.errors import GuestImageError
from veil.guest.initramfs import debian_programs as module
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.debian_programs import PackageFiles, debian_programs


def test_linking_is_what_readelf_says() -> None:
    program = Path(sys.executable).resolve()
    linking = parse_linking(program.read_bytes(), program.name)
    said = subprocess.run(["readelf", "-ld", str(program)], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in said.splitlines() if "(NEEDED)" in line]
    assert list(linking.needed) == needed
    assert linking.interpreter is not None
    assert f"interpreter: {linking.interpreter}]" in said


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF" + bytes(60), b"\x7fELF" + b"\xff" * 200])
def test_what_is_no_program(data: bytes) -> None:
    if data == b"\x7fELF" + bytes(60):
        assert parse_linking(data, "empty").needed == ()
        return
    with pytest.raises(GuestImageError, match="not an ELF program"):
        parse_linking(data, "x")


def test_every_cut_of_a_program_is_refused_or_read() -> None:
    data = Path(sys.executable).resolve().read_bytes()[:4096]
    for length in range(0, 4096, 61):
        try:
            parse_linking(data[:length], "cut")
        except GuestImageError:
            continue


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libaudit.so.1", "libaudit1"), ("libc.so.6", "libc6"), ("libssl.so.3", "libssl3"),
        ("libsqlite3.so.0", "libsqlite3-0"), ("libpcre2-8.so.0", "libpcre2-8-0"), ("libcap-ng.so.0", "libcap-ng0"),
        ("libz.so.1", "zlib1g"), ("libcrypto.so.3", "libssl3"), ("libm.so.6", "libc6"), ("libdb-5.3.so", "libdb5.3"),
        ("libldap-2.5.so.0", "libldap-2.5-0"), ("libgcc_s.so.1", "libgcc-s1"), ("libbrotlidec.so.1", "libbrotli1"),
    ],
)  # fmt: skip
def test_likely_package(library: str, package: str) -> None:
    assert package.startswith(module._package_of(library))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacked packages that apt is not asked for."""
    monkeypatch.setattr(module, "unpacked_packages", lambda _cache, names, _say: [tmp_path / name for name in names])
    monkeypatch.setattr(Apt, "dependencies", lambda _self, name: [name, "libother1"])
    return tmp_path


def put(place: Path, data: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(data)


def test_links_lead_into_other_packages(packages: Path) -> None:
    put(packages / "tools/usr/bin/tool", "#!/bin/sh\n")
    (packages / "daemon/usr/bin").mkdir(parents=True)
    (packages / "daemon/usr/bin/daemon").symlink_to("tool")
    (packages / "daemon/usr/bin/other").symlink_to("/usr/bin/tool")
    (packages / "daemon/usr/bin/loop").symlink_to("loop")
    nodes = debian_programs(Cache(packages), ["daemon", "tools"], ["usr/bin/daemon", "usr/bin/other"])
    assert nodes["usr/bin/daemon"].data == nodes["usr/bin/other"].data == b"#!/bin/sh\n"
    with pytest.raises(GuestImageError, match="has usr/bin/loop"):
        debian_programs(Cache(packages), ["daemon", "tools"], ["usr/bin/loop"])


def test_a_program_that_is_not_there_under_this_name(packages: Path) -> None:
    """Debian's alternatives make the usual names when a package is installed, and some programs are links elsewhere."""
    for number in range(9):
        put(packages / f"lisp/usr/bin/lisp-{number}", "x")
    (packages / "lisp/usr/bin/scheme").symlink_to("../lib/lisp/bin/scheme")
    with pytest.raises(GuestImageError, match=r"no package of lisp has the program lisp, but lisp-0.*lisp-7, \.\.\.$"):
        DebianFiles(Cache(packages), ["lisp"]).program("lisp")
    with pytest.raises(GuestImageError, match="/usr/bin/scheme is a link to /usr/lib/lisp/bin/scheme, which no"):
        DebianFiles(Cache(packages), ["lisp"]).program("scheme")
    put(packages / "libs/usr/lib/lisp/bin/scheme", "it")
    assert DebianFiles(Cache(packages), ["lisp", "libs"]).program("scheme") == ("/usr/bin/scheme", b"it")
    put(packages / "none/etc/none", "x")
    with pytest.raises(GuestImageError, match=r"no package of none has the program lisp$"):
        DebianFiles(Cache(packages), ["none"]).program("lisp")


def test_files_and_folders(packages: Path) -> None:
    put(packages / "web/etc/web/main.conf", "main")
    put(packages / "web/etc/web/more/extra.conf", "extra")
    (packages / "web/etc/web/link").symlink_to("main.conf")
    nodes = debian_programs(Cache(packages), ["web"], [], files=["etc/web", "etc/web/main.conf"])
    assert {name: node.data for name, node in nodes.items()} == {
        "etc/web/main.conf": b"main", "etc/web/more/extra.conf": b"extra", "etc/web/link": b"main.conf",
    }  # fmt: skip
    with pytest.raises(GuestImageError, match="no package of web has etc/none"):
        debian_programs(Cache(packages), ["web"], [], files=["etc/none"])


def test_a_library_that_nobody_has(packages: Path) -> None:
    put(packages / "app/usr/bin/app", "")
    (packages / "app/usr/bin/app").write_bytes(Path("/bin/true").resolve().read_bytes())
    (packages / "libother1").mkdir()
    with pytest.raises(GuestImageError, match=r"no package of app or of what they depend on has lib.*\.so"):
        debian_programs(Cache(packages), ["app"], ["usr/bin/app"])


def build_library(place: Path, name: str, *needed: Path) -> Path:
    """A shared library that needs others."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-nostdlib", "-x", "c", "/dev/null", "-o", str(place / name), f"-Wl,-soname,{name}"]
    subprocess.run([*command, "-Wl,--no-as-needed", "-x", "none", *map(str, needed)], check=True)
    return place / name


def test_exactly_the_closure(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = build_library(packages / "libfar1/usr/lib/x86_64-linux-gnu", "libfar.so.1")
    near = build_library(packages / "libnear2/lib/x86_64-linux-gnu", "libnear.so.2", far)
    build_library(packages / "libnear2/lib/x86_64-linux-gnu", "libunused.so.1")
    build_library(packages / "app/usr/bin", "app", near)
    (packages / "libvery-other1").mkdir()
    asked = []

    def dependencies(_: object, package: str) -> list[str]:
        asked.append(package)
        return [package, "libvery-other1", "libfar1", "libnear2"]

    monkeypatch.setattr(Apt, "dependencies", dependencies)
    cache = Cache(packages / "cache")
    first = debian_programs(cache, ["app"], ["usr/bin/app"])
    assert sorted(first) == ["lib/x86_64-linux-gnu/libfar.so.1", "lib/x86_64-linux-gnu/libnear.so.2", "usr/bin/app"]
    assert first["lib/x86_64-linux-gnu/libfar.so.1"].data == far.read_bytes()
    # What it took is remembered: the second time needs no apt, and gives the same.
    assert debian_programs(cache, ["app"], ["usr/bin/app"]) == first
    assert asked == ["app"]
    (packages / "libfar1/usr/lib/x86_64-linux-gnu/libfar.so.1").unlink()
    with pytest.raises(GuestImageError, match=r"has libfar\.so\.1"):
        debian_programs(cache, ["app"], ["usr/bin/app"])


def test_what_a_program_needs_is_fetched_at_once(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what those need in turn: apt takes a second a call."""
    far = build_library(packages / "libfar1/usr/lib/x86_64-linux-gnu", "libfar.so.1")
    near = build_library(packages / "libnear2/lib/x86_64-linux-gnu", "libnear.so.2", far)
    next_to = build_library(packages / "libnext1/lib/x86_64-linux-gnu", "libnext.so.1")
    build_library(packages / "app/usr/bin", "app", near, next_to)
    monkeypatch.setattr(Apt, "dependencies", lambda _self, name: [name, "libfar1", "libnext1", "libnear2"])
    calls: list[list[str]] = []

    def unpack(_cache: Cache, names: list[str], _say: object) -> list[Path]:
        calls.append(list(names))
        return [packages / name for name in names]

    monkeypatch.setattr(module, "unpacked_packages", unpack)
    debian_programs(Cache(packages / "cache"), ["app"], ["usr/bin/app"])
    assert calls == [["app"], ["libnear2", "libnext1"], ["libfar1"]]


def test_a_damaged_program_is_found_and_its_user_says_what_is_wrong(packages: Path) -> None:
    place = packages / "app/usr/bin/app"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"\x7fELF and no more")
    assert PackageFiles(Cache(packages / "cache"), ["app"], []).program("usr/bin/app") == place


def test_a_script_and_its_mode(packages: Path) -> None:
    put(packages / "tools/usr/bin/tool", "#!/bin/sh\n")
    assert debian_programs(Cache(packages), ["tools"], ["usr/bin/tool"]) == {
        "usr/bin/tool": Node.file(b"#!/bin/sh\n", 0o755)
    }
