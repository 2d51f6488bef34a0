# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache under `$XDG_CACHE_HOME/veil`: entries named by what went into them, published whole, repaired when damaged.

An entry is a directory `KIND/KEY`. Its files and their SHA-256 sums stand in a manifest that is written last; a build
happens in a private directory and becomes visible by one rename. So a reader sees a complete entry or none, a killed
builder leaves only rubbish in `tmp/`, and a damaged entry (a full disk, an unclean shutdown, a stray edit) is noticed
by its checksums and built again.

What lies here is run (the engine), measured and believed: the root must be the user's own, and nobody else may enter.
"""

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from veil.cache_place import NO_PLACE, cache_place
from veil.disk import describe_full_disk, is_full
from veil.errors import VeilError, describe
from veil.private_files import locked, make_folder, own_folder, tighten, write_new

_MANIFEST = ".manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_~-]{0,180}")
_STALE_SECONDS = 24 * 3600
#: A file that changed so lately may change again without another time.
_UNSETTLED_NS = 2_000_000_000


class CacheError(VeilError):
    """The cache cannot be read or written; the message says where and why."""


def cache_directory() -> Path:
    """Where it is (`cache_place`). Raises CacheError."""
    place = cache_place()
    if place is None:
        raise CacheError(NO_PLACE)
    return place


def cache_key(*parts: str | bytes) -> str:
    """A key made of all `parts`: length-prefixed, so that no two lists of parts meet in one key."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:40]


class Cache:
    """Directories of files by kind and key. Safe for several processes at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_directory()

    def entry(self, kind: str, key: str, build: Callable[[Path], None], *, verify: bool = True) -> Path:
        """The entry's directory; `build(directory)` fills it first if it is missing or damaged.

        With `verify=False` only the presence and the sizes of the files are checked, not their contents.
        """
        place = self._place(kind, key)
        if self._sound(place, verify):
            self._touch(place)
            return place
        with self._explained(f"{kind}/{key}"), self._locked(f"{kind}.{key}"):
            # Another process may have built it while we waited for the lock.
            if not self._sound(place, verify):
                self._build(place, build)
        return place

    def lookup(self, kind: str, key: str, *, verify: bool = True) -> Path | None:
        """The entry's directory if it is there and sound."""
        place = self._place(kind, key)
        if not self._sound(place, verify):
            return None
        self._touch(place)
        return place

    def manifest(self, kind: str, key: str) -> Path:
        """The file that says what is in an entry, with checksums: another content has another manifest."""
        return self._place(kind, key) / _MANIFEST

    def keys(self, kind: str) -> list[str]:
        """The keys of a kind, most recently used first. Whether an entry is sound is known only to `lookup`."""
        try:
            found = [(item.stat().st_mtime_ns, item.name) for item in (self.root / kind).iterdir() if item.is_dir()]
        except OSError:
            return []
        return [name for _, name in sorted(found, reverse=True)]

    def remove(self, kind: str, key: str) -> None:
        """Drop an entry; dropping what is not there is not an error."""
        place = self._place(kind, key)
        with self._explained(f"{kind}/{key}"), self._locked(f"{kind}.{key}"):
            self._discard(place)

    def prune(self, kind: str, keep: int) -> None:
        """Drop all but the `keep` most recently used entries of a kind."""
        for key in self.keys(kind)[keep:]:
            self.remove(kind, key)

    def directory(self, name: str) -> Path:
        """A plain directory below the root for state that needs no checksums (apt's lists, locks)."""
        place = self.root / name
        with self._explained(name):
            own_folder(self.root)
            make_folder(place)
        return place

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of the caller's own, on the cache's disk, which is gone afterwards."""
        scratch = self.directory("tmp")
        with self._explained("tmp"):
            _sweep(scratch)
            work = Path(tempfile.mkdtemp(prefix="build-", dir=scratch))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _place(self, kind: str, key: str) -> Path:
        for name in (kind, key):
            # A key may come from a package's name: '..' or '/' must not lead out of the cache.
            if not _NAME.fullmatch(name):
                raise CacheError(f"bad cache name {name!r}")
        return self.root / kind / key

    def _build(self, place: Path, build: Callable[[Path], None]) -> None:
        self._discard(place)
        with self.scratch() as work:
            build(work)
            write_new(work / _MANIFEST, json.dumps(_describe(work), sort_keys=True, indent=0))
            # Compilers, dpkg and others made files here, with modes of their own.
            tighten(work)
            make_folder(place.parent)
            os.rename(work, place)

    def _discard(self, place: Path) -> None:
        if not os.path.lexists(place):
            return
        # Moved away first: a reader must never meet a half-deleted entry under its real name.
        grave = Path(tempfile.mkdtemp(prefix="dead-", dir=self.directory("tmp")))
        os.rename(place, grave / "entry")
        shutil.rmtree(grave, ignore_errors=True)

    def _sound(self, place: Path, verify: bool) -> bool:
        try:
            manifest = json.loads((place / _MANIFEST).read_text())
            for name, (kind, size, value) in manifest.items():
                path = place / name
                if kind == "link":
                    if os.readlink(path) != value:
                        return False
                    continue
                if path.is_symlink() or path.stat().st_size != size or (verify and _sha256(path) != value):
                    return False
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return False
        return True

    @staticmethod
    def _touch(place: Path) -> None:
        # A read-only cache still serves; only the order for pruning is lost.
        with suppress(OSError):
            os.utime(place)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with locked(self.directory("locks") / hashlib.sha256(name.encode()).hexdigest()[:32]):
            yield

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cache_error(error, self.root, what) from error


def cache_error(error: OSError, root: Path, what: str) -> CacheError:
    """One line for an operating system error met while `what` was put into the cache at `root`."""
    if is_full(error):
        return CacheError(describe_full_disk(what, root))
    if error.errno == errno.EPERM and error.filename == str(root):
        return CacheError(f"the cache {root} cannot be used: {error.strerror} (set XDG_CACHE_HOME)")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CacheError(f"cannot write to the cache {root} for {what}: {error.strerror} (set XDG_CACHE_HOME)")
    return CacheError(f"cannot store {what} in the cache {root}: {describe(error)} (XDG_CACHE_HOME moves the cache)")


def _describe(directory: Path) -> dict[str, tuple[str, int, str]]:
    entries: dict[str, tuple[str, int, str]] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            entries[name] = ("link", 0, os.readlink(path))
        elif path.is_file():
            entries[name] = ("file", path.stat().st_size, _sha256(path))
    return entries


def _sha256(path: Path) -> str:
    """Read once in a process's life, as long as the file system says that it is the same file."""
    status = path.stat()
    if time.time_ns() - status.st_ctime_ns < _UNSETTLED_NS:
        return _read_sha256(path)
    return _known_sha256(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@functools.lru_cache(maxsize=1 << 14)
def _known_sha256(path: Path, identity: tuple[int, ...]) -> str:
    return _read_sha256(path)


def _read_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sweep(scratch: Path) -> None:
    """Clear what killed builders left; the young may still be at work."""
    for path in scratch.iterdir():
        try:
            # Not st_mtime: who unpacks a package gives the folder the package's time.
            if time.time() - path.stat().st_ctime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
