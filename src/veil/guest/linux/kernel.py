# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's kernel: one of Debian's own, unmodified, or any x86-64 Linux that the user names."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.guest.apt import Apt
from veil.guest.elf import ElfKernel, is_elf, parse_kernel
from veil.guest.errors import GuestImageError
from veil.guest.linux.bzimage import bzimage_release, extract_vmlinux, find_banner, is_bzimage
from veil.guest.named_files import read_named_file
from veil.private_files import write_new

DEFAULT_SERIES = "6.12"
FIRST_SNP_GUEST = (5, 19)
FIRST_SVSM_GUEST = (6, 11)

#: "6.12" is the cloud kernel of a series, "6.12-amd64" the ordinary one; "7.3/trixie-backports" that of another suite
#: than the configured ones, as apt writes it.
_SERIES = re.compile(r"(?P<version>\d+\.\d+)(?P<flavour>(?:-cloud)?-amd64)?(?:/(?P<suite>[a-z]+(?:-[a-z]+)*))?")
_CLOUD = "-cloud-amd64"
_PACKAGES = "kernel"
_VMLINUX = "vmlinux"
_MAX_FILE = 1 << 30


@dataclass(frozen=True)
class Kernel:
    """An uncompressed kernel on disk, with what is known of it."""

    vmlinux: Path
    release: str
    banner: str
    modules: Path | None
    source: str
    headers: Path | None = None
    """A folder with Debian's packages of headers, unpacked: src/linux-headers-RELEASE and what that refers to."""
    bzimage: Path | None = None
    """The file that it came out of, which firmware starts."""
    suite: str | None = None
    """Debian's suite from which it was fetched, if it is not a configured one."""

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version."""
        return _version(self.release)

    @property
    def knows_svsm(self) -> bool:
        """Whether it can run below VMPL 0, under an SVSM (Linux 6.11, commit series 'Provide SEV-SNP support for
        running under an SVSM')."""
        return self.version >= FIRST_SVSM_GUEST

    def load(self) -> ElfKernel:
        """Its load map."""
        return parse_kernel(_read(self.vmlinux), self.source)

    def load_bzimage(self) -> bytes:
        """The file for firmware. Raises GuestImageError if there is none."""
        if self.bzimage is None:
            raise GuestImageError(f"{self.source}: firmware starts a bzImage, this is a vmlinux")
        return _read(self.bzimage)

    def digest(self) -> str:
        """The SHA-256 of the vmlinux: what of the kernel goes into the key of a snapshot."""
        return hashlib.sha256(_read(self.vmlinux)).hexdigest()


def is_series(name: str) -> bool:
    """Does a user who names this kernel mean a Debian series ("6.12", "6.12-amd64"), and not a file?"""
    return _SERIES.fullmatch(name) is not None


def debian_kernel(
    cache: Cache, series: str = DEFAULT_SERIES, *, refresh: bool = False, progress: Callable[[str], None] | None = None
) -> Kernel:
    """Debian's newest kernel of a series, as the configured apt offers it: '6.12' is its cloud kernel, '6.12-amd64' the
    ordinary one; '7.3/trixie-backports' is from another suite of the same mirror.

    A kernel once fetched is used again without asking apt (so it also works offline) until `refresh` is set.
    """
    if not is_series(series):
        raise GuestImageError(f"unknown kernel version {series!r} (Debian's series are named like {DEFAULT_SERIES})")
    say = progress or (lambda _: None)
    kind, suite = packages_of(series), _suite(series)
    apt = Apt(cache, suite=suite)
    kept = None if refresh else kept_kernel(cache, series)
    if kept is None:
        package = _newest_offered(apt, series)
        key = apt.archive_name(package).removesuffix(".deb")
    else:
        package, key = kept.split("_")[0], kept

    def build(directory: Path) -> None:
        say(f"fetching {package}")
        apt.unpack(package, directory)
        if _image_in(directory) is None:
            # From 6.19 on that package only names others.
            apt.unpack(package.replace("linux-image-", "linux-binary-", 1), directory)
            if not any(directory.glob("usr/lib/modules/*/kernel")):
                apt.unpack(package.replace("linux-image-", "linux-modules-", 1), directory)
        if _image_in(directory) is None:
            raise GuestImageError(f"{package} holds no kernel")

    place = cache.entry(kind, key, build)
    image = _image_in(place)
    if image is None:
        # The manifest is sound but names no kernel: an entry of another version of this program.
        cache.remove(kind, key)
        raise GuestImageError(f"the cached {key} held no kernel and was dropped: try again")
    return replace(open_kernel(cache, image, source=key, progress=progress), suite=suite)


def open_kernel(
    cache: Cache,
    path: Path,
    *,
    modules: Path | None = None,
    source: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Kernel:
    """The kernel in the file `path`, a bzImage or an ELF vmlinux."""
    name = source or str(path)
    data = _read(path)
    if is_elf(data):
        parse_kernel(data, name)
        release, banner = _identify(data, None, name)
        return Kernel(
            path.resolve(), release, banner, modules or _modules_beside(path, release), name,
            _headers_beside(path, release),
        )  # fmt: skip
    if not is_bzimage(data):
        raise GuestImageError(f"{name}: neither a bzImage nor an ELF vmlinux")

    def build(directory: Path) -> None:
        if progress:
            progress(f"extracting {name}")
        vmlinux = extract_vmlinux(data, name)
        parse_kernel(vmlinux, name)
        write_new(directory / _VMLINUX, vmlinux)
        write_new(directory / "banner", "\n".join(_identify(vmlinux, bzimage_release(data), name)))

    place = cache.entry(_VMLINUX, cache_key(data, "1"), build)
    release, banner = (place / "banner").read_text().split("\n")
    return Kernel(
        place / _VMLINUX, release, banner, modules or _modules_beside(path, release), name,
        _headers_beside(path, release), path.resolve(),
    )  # fmt: skip


def require_bootable(kernel: Kernel, *, monitor: bool) -> None:
    """Refuse a kernel that is known not to boot as an SNP guest, below VMPL 0 if there is a monitor."""
    major, minor = kernel.version
    if kernel.version < FIRST_SNP_GUEST:
        raise GuestImageError(f"Linux {major}.{minor} ({kernel.source}) cannot be an SEV-SNP guest: 5.19 is the first")
    if monitor and not kernel.knows_svsm:
        raise GuestImageError(
            f"Linux {major}.{minor} ({kernel.source}) knows no SVSM, so it cannot run below VMPL 0 under VeilMon:"
            " take 6.11 or later, or --no-monitor"
        )


def kept_kernel(cache: Cache, series: str) -> str | None:
    """The newest kernel package of a series that is in the cache: its key."""
    pattern, _ = _packages(series)
    kept = [key for key in cache.keys(packages_of(series)) if pattern.fullmatch(key.partition("_")[0])]
    return max(kept, key=_order, default=None)


def packages_of(series: str) -> str:
    """The kind of cache entry that the kernels of a series are: each suite has its own."""
    suite = _suite(series)
    return _PACKAGES if suite is None else f"{_PACKAGES}-{suite}"


def _suite(series: str) -> str | None:
    match = _SERIES.fullmatch(series)
    return match["suite"] if match is not None else None


def _packages(series: str) -> tuple[re.Pattern[str], str]:
    """What packages of a series are called, and how their names end."""
    match = _SERIES.fullmatch(series)
    assert match is not None
    flavour = match["flavour"] or _CLOUD
    version = rf"{re.escape(match['version'])}\.\d+[^_-]*(?:-\d+)?"
    return re.compile(f"linux-image-{version}{flavour}"), flavour


def _image_in(package: Path) -> Path | None:
    """The kernel in an unpacked package."""
    found = (sorted(package.glob(place)) for place in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"))
    return next((image for images in found for image in images), None)


def _newest_offered(apt: Apt, series: str) -> str:
    pattern, flavour = _packages(series)
    names = apt.names(rf"^linux-image-[0-9].*{flavour}$", pattern)
    offered = [name for name in names if pattern.fullmatch(name)]
    if offered:
        return max(offered, key=_order)
    known = sorted({match["version"] for name in names if (match := _SERIES.search(name))}, key=_order)
    has = f"it has {', '.join(known)}" if known else "it has none at all"
    kind = "cloud kernel" if flavour == _CLOUD else "kernel"
    suite = _suite(series)
    where = "the configured Debian" if suite is None else f"Debian's {suite}"
    other = "" if suite else f"; another suite's is {series}/SUITE, as in {series}/trixie-backports"
    raise GuestImageError(f"unknown kernel version {series}: {where} offers no such {kind} ({has}){other}")


def _order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _identify(vmlinux: bytes, release: str | None, name: str) -> tuple[str, str]:
    found = find_banner(vmlinux)
    if found is None:
        raise GuestImageError(f"{name}: unknown kernel version (no 'Linux version' text in it: is it Linux?)")
    if release and release != found[0]:
        raise GuestImageError(f"{name}: its header says Linux {release}, its kernel Linux {found[0]}")
    return found


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        raise GuestImageError(f"unknown kernel version {release!r}")
    return int(match[1]), int(match[2])


def _modules_beside(path: Path, release: str) -> Path | None:
    """The modules of a kernel: in `modules/` beside it, or where an unpacked package or a system has them."""
    here = path.resolve().parent
    for place in (here, here / "modules", here / f"lib/modules/{release}", here.parent / f"lib/modules/{release}",
                  here.parent / f"usr/lib/modules/{release}"):  # fmt: skip
        if (place / "kernel").is_dir():
            return place
    return None


def _headers_beside(path: Path, release: str) -> Path | None:
    """A folder as /usr, where an unpacked package or a system has the kernel's headers."""
    here = path.resolve().parent
    # Their Makefiles are run: so nothing further up is tried, and nothing that is somebody else's (a kernel in a folder
    # of /tmp has /tmp/usr beside it).
    places = [here / "usr", here.parent / "usr"]
    if here.parts[-4:] == ("usr", "lib", "modules", release):
        places.append(here.parents[2])
    for place in places:
        if (place / f"src/linux-headers-{release}").is_dir() and place.stat().st_uid in (0, os.geteuid()):
            return place
    return None


def _read(path: Path) -> bytes:
    return read_named_file(path, "the kernel", _MAX_FILE)
