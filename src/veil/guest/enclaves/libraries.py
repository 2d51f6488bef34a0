# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that an enclave trusts by hash: what its manifest names, and the libraries that its loader looks for."""

from __future__ import annotations

import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from veil.guest.elf import Linking, is_library, parse_linking
from veil.guest.enclaves.trusted_files import FileSource
from veil.guest.errors import GuestImageError

__all__ = ["collect_trusted"]

#: Where Debian's loader looks first, without a cache of its own.
_FIRST = "/lib/x86_64-linux-gnu"
_TOKEN = re.compile(r"\$(?:\{(ORIGIN|LIB|PLATFORM)\}|(ORIGIN|LIB|PLATFORM)(?![A-Za-z0-9_]))")
_LIB = "lib/x86_64-linux-gnu"
#: What glibc 2.36 takes a processor for: by what it can do, or as the runtime says (AT_PLATFORM).
_PLATFORMS = ("haswell", "x86_64")


def collect_trusted(
    source: FileSource, program: bytes, name: str, trusted: Iterable[str], directory: str = "/"
) -> dict[str, bytes]:
    """Files by path: those of `trusted` (folders end with "/"), and the libraries of the program and of all of these.

    A library stands where the loader finds it by RPATH or RUNPATH, else where it looks first. `directory` is where the
    program starts, from which names with a slash count. Raises GuestImageError.
    """
    files: dict[str, bytes] = {}
    for path in trusted:
        files |= source.tree(path) if path.endswith("/") else {path: source.file(path)}
    search = _Search(source, directory, frozenset(map(posixpath.basename, files)), files)
    named = [(path, data) for path, data in files.items() if is_library(data)]
    main = _Loaded(name, parse_linking(program, name))
    loaded = search.load(main, {posixpath.basename(main.linking.interpreter or "")})
    # These may be loaded later (dlopen): what the program has then is there.
    for path, data in named:
        search.load(_Loaded(path, parse_linking(data, path), main), set(loaded))
    return files


@dataclass(frozen=True)
class _Loaded:
    """A program or library, at its path, and who needs it."""

    path: str
    linking: Linking
    by: _Loaded | None = None

    def folders(self) -> Iterator[str]:
        """Where the loader looks for what it needs, before all else (ld.so(8))."""
        if self.linking.runpath is not None:
            yield from _absolute(self.linking.runpath, self.path)
            return
        above: _Loaded | None = self
        while above is not None:
            if above.linking.runpath is None:
                yield from _absolute(above.linking.rpath, above.path)
            above = above.by


@dataclass
class _Search:
    source: FileSource
    directory: str
    at_hand: frozenset[str]
    """Names of files that the manifest names: where they are, their program knows, as of the JVM's."""
    files: dict[str, bytes]

    def load(self, first: _Loaded, loaded: set[str]) -> set[str]:
        """All that one needs, level by level as the loader does, but `loaded`, to whose names theirs are added.

        Raises GuestImageError.
        """
        waiting = deque([first])
        while waiting:
            who = waiting.popleft()
            for library in who.linking.needed:
                if library in loaded:
                    continue
                loaded.add(library)
                path = self._find(library, who)
                if path is not None:
                    waiting.append(_Loaded(path, parse_linking(self.files[path], path), who))
        return loaded

    def _find(self, library: str, who: _Loaded) -> str | None:
        """The path at which it is from now on; None if it is somewhere that the program knows."""
        for path in self._paths(library, who):
            data = self.files.get(path) or self.source.find(path)
            # The loader, too, goes on behind what is no library for this processor.
            if data is not None and is_library(data):
                self.files[path] = data
                return path
        if library in self.at_hand:
            return None
        path = f"{_FIRST}/{library}"
        try:
            if "/" in library:
                raise GuestImageError(f"there is no library {library}")
            self.files[path] = self.source.library(library)
        except GuestImageError as error:
            raise GuestImageError(f"{error} ({who.path} needs it)") from error
        return path

    def _paths(self, library: str, who: _Loaded) -> list[str]:
        if "/" in library:
            return [_normal(posixpath.join(self.directory, place)) for place in _expanded(library, who.path)]
        return [_normal(f"{folder}/{library}") for folder in who.folders()]


def _absolute(folders: Iterable[str], path: str) -> Iterator[str]:
    # Those that count from the working directory are whoever's directory that is: they are left out.
    for folder in folders:
        yield from (place for place in _expanded(folder, path) if place.startswith("/"))


def _expanded(text: str, path: str) -> list[str]:
    """With what stands for the tokens in a file at `path`; $PLATFORM for more than one thing."""
    found = []
    for platform in _PLATFORMS if "PLATFORM" in text else _PLATFORMS[-1:]:
        values = {"ORIGIN": posixpath.dirname(path), "LIB": _LIB, "PLATFORM": platform}

        def value(token: re.Match[str], values: dict[str, str] = values) -> str:
            return values[token[1] or token[2]]

        found.append(_TOKEN.sub(value, text))
    return found


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")
