# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages, unpacked in the cache: one that is there is used until its entry is removed."""

import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from veil.cache import Cache
from veil.guest.apt import Apt

__all__ = ["host_codename", "kept_package", "unpacked_library", "unpacked_package", "unpacked_packages"]

_PACKAGES, _LIBRARIES = "package", "library"
#: Never fetched for programs of this computer's: they have it already, and it must be their loader's.
_C_LIBRARY = "libc6"


def unpacked_package(
    cache: Cache, package: str, progress: Callable[[str], None] | None = None, *, suite: str | None = None
) -> Path:
    """A folder with the files of a Debian package; once fetched it is used until its cache entry is removed.

    `suite`: of Debian, if this computer's own has no such package. Raises GuestImageError.
    """
    return unpacked_packages(cache, [package], progress, suite=suite)[0]


def unpacked_packages(
    cache: Cache, packages: Sequence[str], progress: Callable[[str], None] | None = None, *, suite: str | None = None
) -> list[Path]:
    """The same for several, in their order. What is missing is fetched with one call of apt, which takes a second each
    time before it begins."""
    places = {package: place for package in packages if (place := _kept_place(cache, package)) is not None}
    missing = [package for package in dict.fromkeys(packages) if package not in places]
    if missing:
        if progress:
            progress(f"fetching {', '.join(missing)}")
        apt = Apt(cache, suite=suite)
        with cache.scratch() as directory:
            for package, archive in zip(missing, apt.download(missing, directory), strict=True):
                # Epochs stand in the names as %3a, which no key has.
                key = archive.name.removesuffix(".deb").replace("%3a", "_")
                places[package] = cache.entry(_PACKAGES, key, partial(apt.unpack_archive, archive))
    return [places[package] for package in packages]


def _kept_place(cache: Cache, package: str) -> Path | None:
    key = kept_package(cache, package)
    return None if key is None else cache.lookup(_PACKAGES, key)


def unpacked_library(cache: Cache, package: str, progress: Callable[[str], None] | None = None) -> Path:
    """A folder with a library and those that it needs, but for the C library: for programs of this computer's own.

    Raises GuestImageError.
    """
    apt = Apt(cache)

    def build(directory: Path) -> None:
        if progress:
            progress(f"fetching {package}")
        needed = [name for name in apt.dependencies(package) if name.startswith("lib") and name != _C_LIBRARY]
        apt.unpack_all(list(dict.fromkeys([package, *needed])), directory)

    key = _kept(cache, _LIBRARIES, package) or apt.archive_name(package).removesuffix(".deb")
    return cache.entry(_LIBRARIES, key, build)


def kept_package(cache: Cache, package: str) -> str | None:
    """The newest version of a package that is in the cache: its key."""
    return _kept(cache, _PACKAGES, package)


def _kept(cache: Cache, kind: str, package: str) -> str | None:
    return max((key for key in cache.keys(kind) if key.startswith(package + "_")), default=None)


def host_codename() -> str | None:
    """What this computer's Debian is called ("bookworm"); None if nothing says so."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME")
    except OSError:
        return None
