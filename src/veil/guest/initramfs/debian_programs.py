# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs out of Debian's packages for the guest: with the loader and the shared libraries that they need, no more."""

import glob
import itertools
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from veil.cache import Cache, cache_key
from veil.guest.apt import LIBRARY_FOLDERS, Apt
from veil.guest.elf import is_elf, parse_linking
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.archive import Node
from veil.guest.packages import unpacked_packages
from veil.private_files import write_new

__all__ = ["PackageFiles", "debian_programs"]

_LIBRARIES = (*LIBRARY_FOLDERS, "lib64")
_CLOSURES = "closure"
_SONAME = re.compile(r"(?P<name>.+?)(?:-(?P<dashed>[\d.]+))?\.so(?:\.(?P<version>\d+))?.*")
_NAMED_OTHERWISE = {
    "libz": "zlib1g", "libcrypto": "libssl", "libbrotlicommon": "libbrotli", "libbrotlidec": "libbrotli",
    **dict.fromkeys(("libdl", "libm", "libpthread", "libresolv", "librt", "libutil"), "libc6"),
}  # fmt: skip


def debian_programs(
    cache: Cache,
    packages: Sequence[str],
    programs: Sequence[str],
    *,
    files: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> dict[str, Node]:
    """Members of the initramfs by path, without a leading slash.

    `programs` (as "usr/sbin/auditctl") come out of `packages`, their libraries (DT_NEEDED, of libraries too) out of
    these or of what they depend on. `files` are more paths of the packages': files, or folders with all that is below.
    A package once fetched is used until its cache entry is removed. Raises GuestImageError.
    """
    nodes: dict[str, Node] = {}
    found = PackageFiles(cache, packages, programs, progress)
    for name in files:
        nodes |= found.tree(name)
    waiting, loaders = list(programs), set()
    while waiting:
        name = waiting.pop()
        if name in nodes:
            continue
        data = found.program(name).read_bytes()
        nodes[name] = Node.file(data, 0o755)
        if not is_elf(data):
            continue
        linking = parse_linking(data, name)
        if linking.interpreter is not None:
            waiting.append(linking.interpreter.lstrip("/"))
            loaders.add(PurePosixPath(linking.interpreter).name)
        # The C library names the loader as a library too; it is there already.
        waiting += [f"{_LIBRARIES[0]}/{PurePosixPath(item).name}" for item in linking.needed if item not in loaders]
    found.remember()
    return nodes


class PackageFiles:
    """Unpacked packages: the named ones, and as many of those they depend on as it takes to find a library."""

    def __init__(
        self, cache: Cache, packages: Sequence[str], programs: Sequence[str], say: Callable[[str], None] | None = None
    ) -> None:
        self._cache = cache
        self._apt = Apt(cache)
        self._packages = list(packages)
        self._say = say
        self._key = cache_key(*packages, "programs", *programs)
        self._roots: list[Path] = []
        self._used: list[str] = []
        self._rest: list[str] | None = None
        self._met: set[str] = set()
        # What it took the last time: the same packages in the same order, without asking apt.
        known = cache.lookup(_CLOSURES, self._key)
        self._known = (known / "packages").read_text().split() if known is not None else []
        self._use(self._known or self._packages)

    def _use(self, packages: Sequence[str]) -> None:
        self._roots += unpacked_packages(self._cache, packages, self._say)
        self._used += packages

    def remember(self) -> None:
        """Keep which packages it took."""
        if self._used != self._known:
            self._cache.remove(_CLOSURES, self._key)
            text = "".join(f"{package}\n" for package in self._used)
            self._cache.entry(_CLOSURES, self._key, lambda place: write_new(place / "packages", text))

    def program(self, name: str) -> Path:
        """A program of the named packages, or a library of anybody's. Raises GuestImageError."""
        path = PurePosixPath(name)
        is_library = ".so" in path.name
        found = self._library(path.name) if is_library else self._look([name])
        if found is None and is_library:
            found = next((place for _ in self._more(path.name) if (place := self._library(path.name))), None)
        if found is not None:
            self._expect_libraries(found)
        if found is None:
            whom = ", ".join(self._packages)
            if is_library:
                raise GuestImageError(f"no package of {whom} or of what they depend on has {path.name}")
            raise GuestImageError(f"no package of {whom} has {name}")
        return found

    def find(self, name: str) -> Path | None:
        """A file of the packages unpacked so far, with links followed; None if they have none."""
        return self._look([name])

    def missing_target(self, name: str) -> str | None:
        """Where a link of these packages leads, if they have nothing there; None if it is no such link."""
        for root in self._roots:
            place = root / name
            if place.is_symlink() and self._look([name]) is None:
                return posixpath.normpath(posixpath.join("/", posixpath.dirname(name), place.readlink()))
        return None

    def library_below(self, name: str) -> Path | None:
        """A library in a folder below the usual ones, as of alternatives and ld.so.conf.d; None if there is none."""
        for root, folder in itertools.product(self._roots, _LIBRARIES):
            for place in sorted((root / folder).rglob(glob.escape(name))):
                if place.is_file():
                    return place
        return None

    def below(self, name: str) -> list[str]:
        """All paths below a folder of the named packages, together."""
        found = {
            str(path.relative_to(root))
            for root in self._roots[: len(self._packages)]
            for path in (root / name).rglob("*")
            if path.is_symlink() or path.is_file()
        }
        return sorted(found)

    def _look(self, places: Sequence[str], links: int = 4) -> Path | None:
        for root, name in itertools.product(self._roots, places):
            place = root / name
            if place.is_symlink():
                # It may lead into another package, and links that begin with "/" mean the guest's root.
                target = posixpath.normpath(posixpath.join("/", posixpath.dirname(name), place.readlink()))
                if links and (found := self._look([target.lstrip("/")], links - 1)):
                    return found
            elif place.exists():
                return place
        return None

    def _more(self, library: str) -> Iterator[None]:
        """Unpack what the packages depend on, a package after the other, the likely ones first."""
        guess = _package_of(library)
        for name in sorted(self._others(), key=lambda name: (not name.startswith(guess), name != "libc6")):
            self._use([name])
            yield

    def _others(self) -> list[str]:
        """What the packages depend on and has not been used yet."""
        if self._rest is None:
            names = [name for package in self._packages for name in self._apt.dependencies(package)]
            self._rest = [name for name in dict.fromkeys(names) if "lib" in name]
        return [name for name in self._rest if name not in self._used]

    def _expect_libraries(self, file: Path) -> None:
        """Fetch what the libraries that a program needs are likely to be in, and then what those need, each all at
        once: apt takes a second a call."""
        wave = [] if self._known else [file]
        while wave:
            needed = dict.fromkeys(name for place in wave for name in _needed(place) if name not in self._met)
            self._met |= needed.keys()
            likely = [self._likely(name) for name in needed if self._library(name) is None]
            if expected := [name for name in dict.fromkeys(likely) if name is not None]:
                self._use(expected)
            wave = [place for name in needed if (place := self._library(name)) is not None]

    def _library(self, name: str) -> Path | None:
        return self._look([f"{folder}/{name}" for folder in _LIBRARIES])

    def _likely(self, library: str) -> str | None:
        """The package that has a library, by its name."""
        return next((name for name in self._others() if name.startswith(_package_of(library))), None)

    def tree(self, name: str) -> dict[str, Node]:
        """A file, or a folder's files, of the named packages. Raises GuestImageError."""
        for root in self._roots[: len(self._packages)]:
            place = root / name
            if place.is_dir() and not place.is_symlink():
                members = sorted(path for path in place.rglob("*") if path.is_symlink() or not path.is_dir())
                return {str(path.relative_to(root)): _node(path) for path in members}
            if place.is_symlink() or place.exists():
                return {name: _node(place)}
        raise GuestImageError(f"no package of {', '.join(self._packages)} has {name}")


def _needed(file: Path) -> list[str]:
    """The names of the libraries that a program or a library needs. Who uses a damaged one says what is wrong with
    it."""
    data = file.read_bytes()
    try:
        needed = parse_linking(data, file.name).needed if is_elf(data) else ()
    except GuestImageError:
        return []
    return [PurePosixPath(name).name for name in needed]


def _node(path: Path) -> Node:
    if path.is_symlink():
        return Node.link(str(path.readlink()))
    return Node.file(path.read_bytes(), 0o755 if path.stat().st_mode & 0o111 else 0o644)


def _package_of(library: str) -> tuple[str, ...]:
    """How the name of the package of a library may begin: of libssl.so.3, libssl3."""
    match = _SONAME.fullmatch(library)
    if match is None:
        return (library,)
    name = match["name"].lower().replace("_", "-")
    if name in _NAMED_OTHERWISE:
        return (_NAMED_OTHERWISE[name],)
    if match["dashed"]:
        return f"{name}{match['dashed']}", f"{name}-{match['dashed']}"
    between = "-" if name[-1:].isdigit() else ""
    return (f"{name}{between}{match['version'] or ''}".rstrip("-"),)
