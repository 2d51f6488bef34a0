# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's headers of a kernel, and from which suite what builds for it comes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from veil.cache import Cache
from veil.guest.apt import Apt
from veil.guest.errors import NoDriverError
from veil.guest.linux.kernel import Kernel
from veil.guest.packages import host_codename

__all__ = ["HEADERS", "KernelHeaders", "kernel_headers", "suites_of"]

#: the kind of cache entry
HEADERS = "headers"
_LIBELF = "libelf1"
_RELEASE = re.compile(r"(?P<version>\d+\.\d+\.\d+[\w.~]*(?:\+deb(?P<debian>\d+)[\w.~]*)?(?:-\d+)?)(?:-cloud)?-amd64")
#: Debian's releases by number: where their kernels are, the likeliest first.
_SUITES = {
    12: ("bookworm", "bookworm-backports"),
    13: ("trixie", "trixie-backports"),
    14: ("forky", "sid", "forky-backports"),
}


@dataclass(frozen=True)
class KernelHeaders:
    """Unpacked packages of headers."""

    folder: Path
    """As /usr."""
    release: str
    version: str
    """As it stands in the names of packages that all kernels of a version share."""

    @property
    def tree(self) -> Path:
        """The folder that modules are built with."""
        return self.folder / "src" / f"linux-headers-{self.release}"

    @property
    def kbuild(self) -> Path:
        """The folder with programs that take part."""
        return self.folder / "lib" / f"linux-kbuild-{self.version}"

    @property
    def libraries(self) -> Path:
        """What these programs need and not every system has."""
        return self.folder / "lib" / "x86_64-linux-gnu"


def suites_of(kernel: Kernel) -> tuple[str | None, ...]:
    """Debian's suites that may have packages for this kernel, in the order in which they are asked. None: whatever
    apt is configured for."""
    if kernel.suite is not None:
        return (kernel.suite,)
    match = _RELEASE.fullmatch(kernel.release)
    named = _SUITES.get(int(match["debian"]), ()) if match is not None and match["debian"] else ()
    # A system's own lists know nothing of a later Debian, which can be said without fetching them anew.
    return (None, *named) if not named or host_codename() in named else named


def kernel_headers(cache: Cache, kernel: Kernel, say: Callable[[str], None]) -> KernelHeaders:
    """The headers of exactly this kernel: what lies beside it, or Debian's. Raises
    GuestImageError, NoDriverError if there are none."""
    match = _RELEASE.fullmatch(kernel.release)
    if match is None:
        raise NoDriverError(
            f"Linux {kernel.release} is not one of Debian's kernels for amd64: there are no headers for it"
        )
    version = match["version"]
    if kernel.headers is not None:
        return KernelHeaders(kernel.headers, kernel.release, version)
    kbuild = f"linux-kbuild-{version}"
    packages = [f"linux-headers-{kernel.release}", f"linux-headers-{version}-common", kbuild]

    def build(directory: Path) -> None:
        apt = _offering(cache, kernel, packages[0])
        say(f"fetching {packages[0]}")
        # What one of the headers' own tools (objtool) stands on; a small system may not have it.
        library = [name for name in apt.dependencies(kbuild) if name.startswith(_LIBELF)]
        apt.unpack_all([*packages, *library[:1]], directory)

    return KernelHeaders(cache.entry(HEADERS, kernel.release, build) / "usr", kernel.release, version)


def _offering(cache: Cache, kernel: Kernel, package: str) -> Apt:
    """The first suite that has it."""
    suites = suites_of(kernel)
    for suite in suites:
        apt = Apt(cache, suite=suite)
        if package in apt.names(f"^{re.escape(package)}$", re.compile(re.escape(package))):
            return apt
    where = ", ".join(suite or "the configured Debian" for suite in suites)
    raise NoDriverError(f"no package {package} in {where}: Debian keeps those of its newest kernels only")
