# SPDX-License-Identifier: GPL-2.0-or-later
"""Build and load the C part of the machine.

The library is built once with the system's C compiler into `$XDG_CACHE_HOME/veil/engine-<hash>/`.  The hash covers
everything that goes in, so another version never meets an old library.  A checksum beside it makes a truncated or
damaged file show before it is mapped (mapping one ends in SIGBUS, not in an exception); such a file is built again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path

from veil.cache_place import NO_PLACE, cache_place
from veil.disk import describe_full_disk, is_full
from veil.private_files import FOLDER_MODE, locked, make_folder, own_folder, write_new
from veil.snp._engine_build import compile_engine, engine_inputs
from veil.snp._engine_core import UNICORN_VERSION, build_folder
from veil.snp.errors import EngineBuildError

__all__ = ["ENGINE_DIR", "build_engine", "cache_dir", "engine_at_hand", "library"]

ENGINE_DIR = Path(__file__).parent / "engine"

#: In the environment, "1": the engine that counts the guest's instructions (docs/engine.md).
_COUNTING = "VEIL_ENGINE_COUNTS"
_LIBRARY = "libveil.so"
_CHECKSUM = "libveil.so.sha256"


def cache_dir() -> Path:
    """As `veil.cache` has it. Raises EngineBuildError."""
    place = cache_place()
    if place is None:
        raise EngineBuildError(NO_PLACE)
    return place


def _is_whole(library_path: Path) -> bool:
    try:
        expected = (library_path.parent / _CHECKSUM).read_text("ascii").strip()
        return hashlib.sha256(library_path.read_bytes()).hexdigest() == expected
    except (OSError, UnicodeDecodeError):
        return False


def _publish(built: Path, directory: Path) -> None:
    checksum = built.parent / _CHECKSUM
    os.chmod(built, FOLDER_MODE)
    write_new(checksum, hashlib.sha256(built.read_bytes()).hexdigest() + "\n")
    # The checksum last: a crash between the two leaves a pair that does not match, which is built again.
    os.replace(built, directory / _LIBRARY)
    os.replace(checksum, directory / _CHECKSUM)


def _failure(what: str, error: OSError) -> EngineBuildError:
    root = cache_dir()
    if is_full(error):
        return EngineBuildError(describe_full_disk(what, root))
    place = error.filename or root
    return EngineBuildError(f"cannot build {what}: {place}: {error.strerror or error} (XDG_CACHE_HOME moves the cache)")


def _quiet(message: str) -> None:
    """Nobody listens."""


def engine_at_hand() -> Path | None:
    """The engine's library, if it need not be built."""
    path = _engine_path()
    return path if _is_whole(path) else None


def _engine_path() -> Path:
    digest = hashlib.sha256(f"{platform.machine()} {platform.libc_ver()[1]} {UNICORN_VERSION}".encode())
    for path in engine_inputs(ENGINE_DIR):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    digest.update(b"counting" if _counting() else b"")
    return cache_dir() / f"engine-{digest.hexdigest()[:20]}" / _LIBRARY


def _counting() -> bool:
    return os.environ.get(_COUNTING) == "1"


def build_engine(progress: Callable[[str], None] = _quiet) -> Path:
    """The engine's library in the cache; built first if it is not there or not whole."""
    library_path = _engine_path()
    directory = library_path.parent
    try:
        # What lies there is about to run as this user.
        own_folder(cache_dir())
        if not _is_whole(library_path):
            make_folder(directory)
            with locked(directory / "lock"):
                # Two processes that start together must not both spend half a minute.
                if not _is_whole(library_path):
                    with build_folder(directory) as work:
                        built = compile_engine(ENGINE_DIR, cache_dir(), work, progress, counting=_counting())
                        _publish(built, directory)
    except OSError as error:
        raise _failure("the CPU engine", error) from error
    return library_path


@functools.cache
def library() -> ctypes.CDLL:
    """The machine's C code, loaded once per process."""
    path = build_engine()
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        (path.parent / _CHECKSUM).unlink(missing_ok=True)
    try:
        return ctypes.CDLL(str(build_engine()))
    except OSError as error:
        raise EngineBuildError(f"cannot load {path}: {error}") from error
