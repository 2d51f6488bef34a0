# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the files of enclaves come from: programs, libraries, and what manifests name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from glob import iglob
from pathlib import Path
from typing import Protocol

from veil.cache import Cache
from veil.errors import describe
from veil.formats.enclaves import MAX_PAGES
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.sizes import format_size
from veil.guest.elf import is_library
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.debian_programs import PackageFiles
from veil.guest.named_files import read_named_file

__all__ = ["ComputerFiles", "DebianFiles", "FileSource"]

_LIBRARIES = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
_LOADER_CONFIGURATION = "/etc/ld.so.conf"
#: includes of includes, of which there is one on Debian
_DEEPEST = 8
#: Longer than all that fits into an enclave.
_LONGEST = MAX_PAGES * PAGE_SIZE
#: Programs that are named instead of one that a package does not have.
_SHOWN = 8
_PROGRAMS = ("usr/bin", "bin", "usr/sbin", "sbin", "usr/games")


class FileSource(Protocol):
    """Where files come from. Paths are those in the guest, and begin with "/"."""

    def program(self, name: str) -> tuple[str, bytes]:
        """Path and content of a program, by its path or its name. Raises GuestImageError."""

    def file(self, path: str) -> bytes:
        """Links are followed. Raises GuestImageError."""

    def find(self, path: str) -> bytes | None:
        """The same; None if there is none."""

    def tree(self, path: str) -> Mapping[str, bytes]:
        """All files below a folder, by path. Raises GuestImageError."""

    def library(self, name: str) -> bytes:
        """A shared library. Raises GuestImageError."""


class ComputerFiles:
    """This computer's own files."""

    def program(self, name: str) -> tuple[str, bytes]:
        """By its path."""
        path = os.path.abspath(name)
        return path, self.file(path)

    def file(self, path: str) -> bytes:
        """See `FileSource`."""
        return read_named_file(path, "a file of the enclave", _LONGEST)

    def find(self, path: str) -> bytes | None:
        """See `FileSource`."""
        return self.file(path) if os.path.isfile(path) else None

    def tree(self, path: str) -> Mapping[str, bytes]:
        """See `FileSource`. Links to folders are not followed."""
        try:
            found = sorted(_walk(path))
        except OSError as error:
            raise GuestImageError(f"cannot read {error.filename or path}: {describe(error)}") from error
        if not found:
            raise GuestImageError(f"{path}: there is no file in that folder")
        contents, left = {}, _LONGEST
        for item in found:
            contents[item] = self.file(item)
            left -= len(contents[item])
            if left < 0:
                raise GuestImageError(f"{path}: the files in that folder have more than {format_size(_LONGEST)}")
        return contents

    def library(self, name: str) -> bytes:
        """From where this computer's own loader has it: the folders of its configuration, then Debian's."""
        for folder in dict.fromkeys((*_configured(_LOADER_CONFIGURATION), *_LIBRARIES)):
            # The loader, too, goes on behind a library for another processor.
            if (data := self.find(f"{folder}/{name}")) is not None and is_library(data):
                return data
        raise GuestImageError(f"there is no library {name} on this computer")


def _walk(folder: str) -> Iterator[str]:
    waiting = [folder.rstrip("/") or "/"]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif os.path.isfile(entry.path):
                    yield entry.path


def _configured(file: str, deep: int = 0) -> Iterator[str]:
    """The folders of ldconfig's configuration: ldconfig(8)."""
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        words = line.partition("#")[0].replace(",", " ").replace(":", " ").split()
        if words[:1] == ["include"] and deep < _DEEPEST:
            for pattern in words[1:]:
                for found in sorted(iglob(os.path.join(os.path.dirname(file), pattern))):
                    yield from _configured(found, deep + 1)
        elif words[:1] not in (["include"], ["hwcap"]):
            yield from (word for word in words if word.startswith("/"))


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
        for place in places:
            if (target := self._files.missing_target(place)) is not None:
                raise GuestImageError(
                    f"/{place} is a link to {target}, which no package of {self._names} has: name that one, too"
                )
        there = [Path(found).name for folder in _PROGRAMS for found in self._files.below(folder)]
        shown = f", but {', '.join(there[:_SHOWN])}{', ...' if len(there) > _SHOWN else ''}" if there else ""
        raise GuestImageError(f"no package of {self._names} has the program {name}{shown}")

    def file(self, path: str) -> bytes:
        """See `FileSource`."""
        found = self._files.find(path.lstrip("/"))
        if found is None and ".so" in path:
            found = self._files.program(path.lstrip("/"))  # the loader, of a package that these depend on
        if found is None or not found.is_file():
            raise GuestImageError(f"no package of {self._names} has {path}")
        return found.read_bytes()

    def find(self, path: str) -> bytes | None:
        """See `FileSource`. Of the packages that were fetched so far."""
        found = self._files.find(path.lstrip("/"))
        return found.read_bytes() if found is not None and found.is_file() else None

    def tree(self, path: str) -> Mapping[str, bytes]:
        """See `FileSource`. A link that leads out of the packages is left out."""
        places = ((f"/{name}", self._files.find(name)) for name in self._files.below(path.strip("/")))
        found = {name: place.read_bytes() for name, place in places if place is not None and place.is_file()}
        if not found:
            raise GuestImageError(f"no package of {self._names} has a file in the folder {path}")
        return found

    def library(self, name: str) -> bytes:
        """From the packages, or from one that they depend on."""
        try:
            found = self._files.program(f"usr/lib/x86_64-linux-gnu/{name}")
        except GuestImageError:
            below = self._files.library_below(name)
            if below is None:
                raise
            found = below
        self._files.remember()
        return found.read_bytes()
