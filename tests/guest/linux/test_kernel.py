# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels: formats, fetching, and what is said of those that will not do."""

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.guest.linux.images import COMPRESSORS, bzimage, elf
from veil.cache import Cache
from veil.errors import VeilError
from veil.guest.elf import parse_kernel
from veil.guest.errors import GuestImageError
from veil.guest.linux.bzimage import extract_vmlinux
from veil.guest.linux.kernel import debian_kernel, is_series, kept_kernel, open_kernel, require_bootable

VMLINUX = elf()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("method", COMPRESSORS)
def test_each_compression(cache: Cache, tmp_path: Path, method: str) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(VMLINUX, COMPRESSORS[method](VMLINUX)))
    kernel = open_kernel(cache, path)
    assert kernel.vmlinux.read_bytes() == VMLINUX
    assert (kernel.release, kernel.version, kernel.knows_svsm) == ("6.12.1-made-up", (6, 12), True)
    assert kernel.banner.startswith("Linux version 6.12.1-made-up (someone@somewhere)")
    assert open_kernel(cache, path) == kernel


def test_elf_kernel_is_taken_as_it_is(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(VMLINUX)
    kernel = open_kernel(cache, path)
    assert kernel.vmlinux == path
    assert kernel.modules is None
    loaded = kernel.load()
    assert (loaded.entry, loaded.start, loaded.end) == (0x1000010, 0x1000000, 0x1203000)


def test_virtual_entry_point() -> None:
    assert parse_kernel(elf(entry=0xFFFFFFFF81000020), "x").entry == 0x1000020


@pytest.mark.parametrize("place", ["modules", "lib/modules/6.12.1-made-up"])
def test_modules_beside(cache: Cache, tmp_path: Path, place: str) -> None:
    (tmp_path / "vmlinux").write_bytes(VMLINUX)
    (tmp_path / place / "kernel").mkdir(parents=True)
    assert open_kernel(cache, tmp_path / "vmlinux").modules == tmp_path / place


GOOD = bzimage(VMLINUX, COMPRESSORS["zstd"](VMLINUX))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a bzImage nor an ELF"),
        (b"#!/bin/sh\n" * 100, "neither a bzImage nor an ELF"),
        (GOOD[:3000], "cut short"),
        (bzimage(VMLINUX, b"\x89LZO\0\r\n\x1a\n" + VMLINUX), "unknown kernel compression"),
        (bzimage(VMLINUX, COMPRESSORS["gzip"](VMLINUX)[:-50]), "damaged"),
        (bzimage(VMLINUX, COMPRESSORS["xz"](VMLINUX)[:-50]), "damaged"),
        (bzimage(VMLINUX + b"x", COMPRESSORS["zstd"](VMLINUX)), "damaged"),
        (bzimage(b"", COMPRESSORS["zstd"](b"")), "impossible kernel size"),
        (bzimage(b"x" * 1000, COMPRESSORS["zstd"](b"x" * 1000)), "no ELF"),
        (bzimage(VMLINUX, COMPRESSORS["zstd"](VMLINUX), "5.0"), "its header says Linux 5.0"),
        (GOOD[:0x206] + b"\x05\x02" + GOOD[0x208:], "boot protocol 2.05 is too old"),
        (elf(machine=40), "no 64-bit x86"),
        (elf(kind=1), "no 64-bit x86"),
        (elf([]), "without loadable segments"),
        (elf([(0x1000000, b"Linux", 5)], 0x1000001), "unknown kernel version"),
        (elf(entry=0x5000), "in no loaded segment"),
        (elf([(0x1000000, bytes(100), 200), (0x1000010, b"x", 1)]), "overlap"),
        (elf([(0x1000000, bytes(100), 50)]), "outside the file"),
        (VMLINUX[:200], "outside the file"),
        (VMLINUX[:80], "program headers"),
        (b"\x7fELF", "not an ELF kernel"),
    ],
)
def test_bad_kernels_get_one_line(cache: Cache, tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    with pytest.raises(GuestImageError, match=message) as caught:
        open_kernel(cache, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_kernel(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(GuestImageError, match="No such file"):
        open_kernel(cache, tmp_path / "nothing")
    with pytest.raises(GuestImageError, match="Is a directory"):
        open_kernel(cache, tmp_path)


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_no_damage_surprises(data: st.DataObject) -> None:
    """Whatever is broken, the outcome is the kernel or a GuestImageError."""
    method = data.draw(st.sampled_from(sorted(COMPRESSORS)))
    image = bytearray(_IMAGES[method])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(image) - 1) | st.integers(0x1F0, 0x260))
        image[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(GuestImageError):
        parse_kernel(extract_vmlinux(bytes(image), "x"), "x")


_IMAGES = {name: bzimage(VMLINUX, compress(VMLINUX)) for name, compress in COMPRESSORS.items()}


@settings(max_examples=examples(200))
@given(st.data())
def test_no_elf_header_surprises(data: st.DataObject) -> None:
    image = bytearray(elf([(0x1000000, bytes(64), 64), (0x1200000, bytes(16), 32)]))
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(4, 64 + 112 - 1))] = data.draw(st.integers(0, 255))
    try:
        loaded = parse_kernel(bytes(image), "x")
    except GuestImageError:
        return
    assert any(piece.address <= loaded.entry < piece.address + piece.size for piece in loaded.segments)


def test_headers_of_somebody_elses_are_not_taken(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine" / "vmlinux"
    path.parent.mkdir()
    path.write_bytes(VMLINUX)
    place = tmp_path / "usr"
    (place / "src/linux-headers-6.12.1-made-up").mkdir(parents=True)
    assert open_kernel(cache, path).headers == place
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
    else:
        os.chown(place, 4711, -1)
    assert open_kernel(cache, path).headers is None


@pytest.mark.parametrize("release", ["6.12.1/../../elsewhere-amd64", "6.12.1-$(touch mark)-amd64", "6.12.1-%s\xff"])
def test_a_release_is_no_path(cache: Cache, tmp_path: Path, release: str) -> None:
    """Headers and modules are looked for by it."""
    banner = b"Linux version " + release.encode("latin-1") + b" (a@b) #1\n\0"
    (tmp_path / "vmlinux").write_bytes(elf([(0x1000000, banner, 4096)]))
    with pytest.raises(GuestImageError, match="unknown kernel version"):
        open_kernel(cache, tmp_path / "vmlinux")


@pytest.mark.parametrize(("release", "monitor", "message"), [("5.10.0-1", False, "cannot be an SEV-SNP guest"),
                                                              ("6.1.0-9", True, "knows no SVSM")])  # fmt: skip
def test_kernels_too_old(cache: Cache, tmp_path: Path, release: str, monitor: bool, message: str) -> None:
    banner = b"Linux version " + release.encode() + b" (a@b) #1\n\0"
    (tmp_path / "vmlinux").write_bytes(elf([(0x1000000, banner, 4096)]))
    kernel = open_kernel(cache, tmp_path / "vmlinux")
    with pytest.raises(GuestImageError, match=message):
        require_bootable(kernel, monitor=monitor)
    if kernel.version >= (5, 19):
        require_bootable(kernel, monitor=False)


# A made-up apt: $OFFER names the packages, downloads are copies of $DEB.
APT = """#!/bin/sh
echo "$0 $@" >> "$LOG"
case "$*" in
*" search "*) [ -n "$NEEDS_UPDATE" ] && [ ! -e "$UPDATED" ] && OFFER=$OLD_OFFER
    for name in $OFFER; do echo "$name - a kernel"; done;;
*--print-uris*) for last; do :; done; echo "'http://x/y.deb' ${last}_6.12.1-1_amd64.deb 100 SHA256:00";;
*download*) [ -n "$NO_SPACE" ] && { echo "E: write error - No space left on device" >&2; exit 100; }
    [ -n "$NO_NET" ] && { echo "E: Failed to fetch http://x: Could not resolve 'deb.example'" >&2; exit 100; }
    for last; do :; done; cp "$DEB" "./${last}_6.12.1-1_amd64.deb";;
*update*) [ -n "$NO_NET" ] && { echo "W: Could not resolve 'deb.example'" >&2; exit 0; }
    touch "$UPDATED"; for lists in "${UPDATED%/*}"/cache/apt*/lists; do touch "$lists/a_Packages"; done;;
*indextargets*) echo http://deb.example/debian;;
*) exit 9;;
esac
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("apt-get", "apt-cache"):
        (tools / name).write_text(APT)
        (tools / name).chmod(0o755)
    (tools / "dpkg-deb").write_text(f'#!/bin/sh\necho dpkg >> "$LOG"\ncp -r {tmp_path}/tree/. "$3"\n')
    (tools / "dpkg-deb").chmod(0o755)
    (tmp_path / "tree/boot").mkdir(parents=True)
    (tmp_path / "tree/boot/vmlinuz-6.12.1-made-up").write_bytes(GOOD)
    (tmp_path / "tree/lib/modules/6.12.1-made-up/kernel").mkdir(parents=True)
    (tmp_path / "tree/lib/modules/6.12.1-made-up/kernel/a.ko").write_bytes(b"module")
    (tmp_path / "deb").write_bytes(b"deb")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("DEB", str(tmp_path / "deb"))
    monkeypatch.setenv("UPDATED", str(tmp_path / "updated"))
    monkeypatch.setenv(
        "OFFER",
        "linux-image-6.12-cloud-amd64 linux-image-6.12.9+deb12-cloud-amd64 linux-image-6.12.88+deb12-cloud-amd64"
        " linux-image-6.12.99+deb12-cloud-amd64-unsigned linux-image-6.1.0-40-cloud-amd64 linux-image-cloud-amd64",
    )
    return monkeypatch


def log(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def test_newest_of_the_series_is_fetched_once(apt: pytest.MonkeyPatch, cache: Cache, tmp_path: Path) -> None:
    kernel = debian_kernel(cache)
    assert kernel.source == "linux-image-6.12.88+deb12-cloud-amd64_6.12.1-1_amd64"
    assert kernel.release == "6.12.1-made-up"
    assert kernel.modules is not None
    assert kernel.modules.is_dir()
    assert not list(kernel.modules.parents[2].rglob("*.deb"))
    calls = len(log(tmp_path))
    assert debian_kernel(cache) == kernel
    assert len(log(tmp_path)) == calls, "a kernel that is there needs no apt"
    debian_kernel(cache, refresh=True)
    assert len(log(tmp_path)) == calls + 2


def test_damaged_package_is_fetched_again(apt: pytest.MonkeyPatch, cache: Cache) -> None:
    kernel = debian_kernel(cache)
    assert kernel.modules is not None
    image = kernel.modules.parents[2] / "boot/vmlinuz-6.12.1-made-up"
    image.write_bytes(b"\0" * len(GOOD))
    kernel.vmlinux.write_bytes(b"\0")
    assert debian_kernel(cache) == kernel
    assert image.read_bytes() == GOOD
    assert kernel.vmlinux.read_bytes() == VMLINUX


@pytest.mark.parametrize("old", ["", "linux-image-6.1.0-40-cloud-amd64"])
def test_own_lists_where_the_systems_lack_it(apt: pytest.MonkeyPatch, cache: Cache, tmp_path: Path, old: str) -> None:
    apt.setenv("NEEDS_UPDATE", "1")
    apt.setenv("OLD_OFFER", old)
    assert debian_kernel(cache).version == (6, 12)
    update = next(line for line in log(tmp_path) if "update" in line)
    assert f"Dir::State={cache.root}/apt" in update
    assert f"Dir::Cache={cache.root}/apt" in update


def test_unknown_series(apt: pytest.MonkeyPatch, cache: Cache) -> None:
    with pytest.raises(GuestImageError, match=r"unknown kernel version 6\.5: .* \(it has 6\.1, 6\.12\)"):
        debian_kernel(cache, "6.5")
    with pytest.raises(GuestImageError, match=r"6\.5/SUITE, as in 6\.5/trixie-backports"):
        debian_kernel(cache, "6.5")
    with pytest.raises(GuestImageError, match=r"6\.5/sid: Debian's sid offers no such cloud kernel"):
        debian_kernel(cache, "6.5/sid")
    with pytest.raises(GuestImageError, match="unknown kernel version 'new'"):
        debian_kernel(cache, "new")


def test_series_are_not_prefixes(apt: pytest.MonkeyPatch, cache: Cache) -> None:
    assert debian_kernel(cache, "6.1").source.startswith("linux-image-6.1.0-40-cloud")


def test_the_ordinary_kernel_of_a_series(apt: pytest.MonkeyPatch, cache: Cache) -> None:
    apt.setenv(
        "OFFER", "linux-image-6.12-amd64 linux-image-6.12.9+deb12-amd64 linux-image-6.12.88+deb12-cloud-amd64 "
        "linux-image-6.12.99+deb12-rt-amd64 linux-image-6.12.77+deb12-amd64-unsigned",
    )  # fmt: skip
    assert is_series("6.12-amd64")
    assert debian_kernel(cache, "6.12-amd64").source.startswith("linux-image-6.12.9+deb12-amd64_")
    assert kept_kernel(cache, "6.12-amd64") == "linux-image-6.12.9+deb12-amd64_6.12.1-1_amd64"
    assert kept_kernel(cache, "6.12") is None
    assert debian_kernel(cache).source.startswith("linux-image-6.12.88+deb12-cloud-amd64_")


def test_a_package_that_names_the_one_with_the_kernel(apt: pytest.MonkeyPatch, cache: Cache, tmp_path: Path) -> None:
    """Debian's packages from 6.19 on."""
    tree = tmp_path / "tree"
    image = tree / "boot/vmlinuz-6.12.1-made-up"
    (tree / "usr/lib/modules/6.12.1-made-up/kernel").mkdir(parents=True)
    image.rename(tree / "usr/lib/modules/6.12.1-made-up/vmlinuz")
    (tmp_path / "bin/dpkg-deb").write_text(f'#!/bin/sh\nif grep -q linux-binary "$LOG"; then cp -r {tree}/. "$3"; fi\n')
    kernel = debian_kernel(cache)
    assert any(line.endswith("linux-binary-6.12.88+deb12-cloud-amd64") for line in log(tmp_path))
    assert kernel.release == "6.12.1-made-up"
    assert kernel.modules is not None
    assert kernel.modules.name == kernel.release


def test_a_package_that_names_those_with_kernel_and_modules(
    apt: pytest.MonkeyPatch, cache: Cache, tmp_path: Path
) -> None:
    """Debian's packages from 7.0 on."""
    tree, release = tmp_path / "tree", "6.12.1-made-up"
    place = tree / f"usr/lib/modules/{release}"
    place.mkdir(parents=True)
    (tree / f"boot/vmlinuz-{release}").rename(place / "vmlinuz")
    (tmp_path / "bin/dpkg-deb").write_text(
        '#!/bin/sh\nplace="$3/usr/lib/modules/6.12.1-made-up"\n'
        f'if grep -q linux-binary "$LOG"; then mkdir -p $place; cp {place}/vmlinuz $place; fi\n'
        'if grep -q linux-modules "$LOG"; then mkdir -p $place/kernel; fi\n'
    )
    kernel = debian_kernel(cache)
    assert kernel.modules is not None
    fetched = [line.split()[-1] for line in log(tmp_path) if " download " in line and "--print-uris" not in line]
    assert fetched == [f"linux-{part}-6.12.88+deb12-cloud-amd64" for part in ("image", "binary", "modules")]


def test_a_kernel_of_another_suite(apt: pytest.MonkeyPatch, cache: Cache, tmp_path: Path) -> None:
    kernel = debian_kernel(cache, "6.12/trixie-backports")
    assert kernel.suite == "trixie-backports"
    for line in log(tmp_path):
        if line.split()[0].endswith(("apt-get", "apt-cache")):
            assert f"Dir::Etc::SourceList={cache.root}/apt-trixie-backports/sources.list" in line
            assert "Dir::State::status=/dev/null" in line
    calls = len(log(tmp_path))
    assert debian_kernel(cache, "6.12/trixie-backports") == kernel
    assert len(log(tmp_path)) == calls
    # A series without a suite means the configured ones, whatever was fetched before.
    assert kept_kernel(cache, "6.12") is None
    assert debian_kernel(cache).suite is None
    for name in ("6.12/trixie", "6.12-amd64/sid", "7.3-cloud-amd64/trixie-backports"):
        assert is_series(name)
    for name in ("6.12/", "6.12/../kernel", "boot/6.12", "6.12/Trixie", "6.12/trixie/main"):
        assert not is_series(name)


@pytest.mark.parametrize(("variable", "message"), [("NO_NET", "no network"), ("NO_SPACE", "the disk is full")])
def test_download_troubles(apt: pytest.MonkeyPatch, cache: Cache, variable: str, message: str) -> None:
    apt.setenv(variable, "1")
    with pytest.raises(VeilError, match=message) as caught:
        debian_kernel(cache)
    assert "\n" not in str(caught.value)
    assert cache.keys("kernel") == []


def test_no_apt_at_all(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestImageError, match="on Debian only"):
        debian_kernel(cache)


def test_header_lengths_are_checked() -> None:
    image = bytearray(GOOD)
    struct.pack_into("<II", image, 0x248, 0xFFFFFFF0, 0xFFFFFFF0)
    with pytest.raises(GuestImageError, match="cut short"):
        extract_vmlinux(bytes(image), "x")
