# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages, unpacked in the cache: one that is there is used until its entry is removed."""

import platform
from collections.abc import Callable
from pathlib import Path

from veil.cache import Cache
from veil.guest.apt import Apt

__all__ = ["host_codename", "kept_package", "unpacked_package"]

_PACKAGES = "package"


def unpacked_package(
    cache: Cache, package: str, progress: Callable[[str], None] | None = None, *, suite: str | None = None
) -> Path:
    """A folder with the files of a Debian package; once fetched it is used until its cache entry is removed.

    `suite`: of Debian, if this computer's own has no such package.
    """
    apt = Apt(cache, suite=suite)
    key = kept_package(cache, package) or apt.archive_name(package).removesuffix(".deb")

    def build(directory: Path) -> None:
        if progress:
            progress(f"fetching {package}")
        apt.unpack(package, directory)

    return cache.entry(_PACKAGES, key, build)


def kept_package(cache: Cache, package: str) -> str | None:
    """The newest version of a package that is in the cache: its key."""
    return max((key for key in cache.keys(_PACKAGES) if key.startswith(package + "_")), default=None)


def host_codename() -> str | None:
    """What this computer's Debian is called ("bookworm"); None if nothing says so."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME")
    except OSError:
        return None
