# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that an enclave trusts by hash: libraries, and what its manifest names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from veil.cache import Cache
from veil.errors import describe
from veil.guest.elf import is_elf, parse_linking
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.debian_programs import PackageFiles

__all__ = ["ComputerFiles", "DebianFiles", "FileSource", "collect_trusted"]

_LIBRARIES = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
_PROGRAMS = ("usr/bin", "bin", "usr/sbin", "sbin", "usr/games")


class FileSource(Protocol):
    """Where files come from. Paths are those in the guest, and begin with "/"."""

    def program(self, name: str) -> tuple[str, bytes]:
        """Path and content of a program, by its path or its name. Raises GuestImageError."""

    def file(self, path: str) -> bytes:
        """Links are followed. Raises GuestImageError."""

    def tree(self, path: str) -> Mapping[str, bytes]:
        """All files below a folder, by path. Raises GuestImageError."""

    def library(self, name: str) -> bytes:
        """A shared library. Raises GuestImageError."""


class ComputerFiles:
    """This computer's own files."""

    def program(self, name: str) -> tuple[str, bytes]:
        """By its path."""
        path = str(Path(name).absolute())
        return path, self.file(path)

    def file(self, path: str) -> bytes:
        """See `FileSource`."""
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise GuestImageError(f"cannot read {path}: {describe(error)}") from error

    def tree(self, path: str) -> Mapping[str, bytes]:
        """See `FileSource`."""
        found = sorted(str(item) for item in Path(path).rglob("*") if item.is_file())
        if not found:
            raise GuestImageError(f"{path}: there is no folder with files")
        return {item: self.file(item) for item in found}

    def library(self, name: str) -> bytes:
        """From where Debian's loader looks first."""
        for folder in _LIBRARIES:
            if (Path(folder) / name).is_file():
                return self.file(f"{folder}/{name}")
        raise GuestImageError(f"there is no library {name} on this computer")


class DebianFiles:
    """Files of Debian packages, which are fetched as needed."""

    def __init__(self, cache: Cache, packages: Sequence[str]) -> None:
        self._names = ", ".join(packages)
        self._files = PackageFiles(cache, packages, ["enclave"])

    def program(self, name: str) -> tuple[str, bytes]:
        """By its path, or by its name in one of the usual folders."""
        places = [name.lstrip("/")] if "/" in name else [f"{folder}/{name}" for folder in _PROGRAMS]
        for place in places:
            try:
                return f"/{place}", self._files.program(place).read_bytes()
            except GuestImageError:
                continue
        raise GuestImageError(f"no package of {self._names} has the program {name}")

    def file(self, path: str) -> bytes:
        """See `FileSource`."""
        found = self._files.find(path.lstrip("/"))
        if found is None and ".so" in path:
            found = self._files.program(path.lstrip("/"))  # the loader, of a package that these depend on
        if found is None or not found.is_file():
            raise GuestImageError(f"no package of {self._names} has {path}")
        return found.read_bytes()

    def tree(self, path: str) -> Mapping[str, bytes]:
        """See `FileSource`. A link that leads out of the packages is left out."""
        found = ((f"/{name}", self._files.find(name)) for name in self._files.below(path.strip("/")))
        return {name: place.read_bytes() for name, place in found if place is not None and place.is_file()}

    def library(self, name: str) -> bytes:
        """From the packages, or from one that they depend on."""
        found = self._files.program(f"usr/lib/x86_64-linux-gnu/{name}").read_bytes()
        self._files.remember()
        return found


def collect_trusted(source: FileSource, program: bytes, name: str, trusted: Iterable[str]) -> dict[str, bytes]:
    """Files by path: those of `trusted` (folders end with "/"), and the libraries of the program and of all of these.

    Libraries stand where Debian's loader looks first without a cache of its own. Raises GuestImageError.
    """
    found: dict[str, bytes] = {}
    for path in trusted:
        found |= source.tree(path) if path.endswith("/") else {path: source.file(path)}
    waiting = [(name, program), *((path, data) for path, data in found.items() if is_elf(data))]
    loader = parse_linking(program, name).interpreter if is_elf(program) else None
    # One that the manifest names is where its program says (RUNPATH), as the JVM's are.
    known = {PurePosixPath(path).name for path in (*found, *((loader,) if loader is not None else ()))}
    while waiting:
        who, data = waiting.pop()
        for library in parse_linking(data, who).needed:
            if library in known or "/" in library:
                continue
            known.add(library)
            path = f"{_LIBRARIES[0]}/{library}"
            found[path] = source.library(library)
            waiting.append((path, found[path]))
    return found
