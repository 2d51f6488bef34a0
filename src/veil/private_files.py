# SPDX-License-Identifier: GPL-2.0-or-later
"""Every file and folder that Veil makes: for its owner alone, whatever the umask, and never through a planted link.

Snapshots hold memory keys, fetched logs hold what people did, the cache holds programs that are run: a file that its
user did not ask to share is made with 0600, a folder with 0700. Files are made under a new name (O_EXCL, O_NOFOLLOW),
then renamed: whatever lies at the name already (a link, a pipe, somebody else's file) is replaced and never opened.
`tests/test_private_files.py` sees to it that no other module opens a file for writing.

This module stands below all others and imports none of them. Its errors are `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "FILE_MODE",
    "FOLDER_MODE",
    "UMASK",
    "copy_file",
    "locked",
    "make_folder",
    "open_own",
    "own_folder",
    "replacing",
    "require_private",
    "tighten",
    "write_new",
    "write_private",
]

FILE_MODE = 0o600
FOLDER_MODE = 0o700
#: for programs that we start and that make files: subprocess.run(..., umask=UMASK)
UMASK = 0o077

_OTHERS = 0o077
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: names for streams that are open already; a new file cannot take their place
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/null", "/dev/full", "/dev/fd/", "/proc/self/fd/")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, with 0700. One that is there stays as it is.

    A link to a folder counts as one: it is its owner's way of keeping things elsewhere.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    try:
        os.mkdir(path, FOLDER_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    os.chmod(path, FOLDER_MODE)


def own_folder(path: Path) -> None:
    """Make a folder if need be, and see to it that it is ours and closed to others.

    A folder that an earlier version made wider is tightened, and so is all that is in it. Raises PermissionError for a
    folder, or a link to one, that belongs to somebody else, who could put there what we would then believe or run.
    """
    make_folder(path)
    for status in (os.lstat(path), os.stat(path)):
        if status.st_uid != os.geteuid():
            raise PermissionError(
                errno.EPERM, f"it belongs to user {status.st_uid}, not to you (user {os.geteuid()})", str(path)
            )
    if os.stat(path).st_mode & _OTHERS:
        # The folder first: from here on nobody else gets at what is in it.
        os.chmod(path, FOLDER_MODE)
        tighten(path)


def require_private(path: Path) -> None:
    """Raises PermissionError for a file that others may have read or written, or that is somebody else's."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
        raise PermissionError(errno.EPERM, "others could get at it", str(path))


def tighten(folder: Path) -> None:
    """Take from everybody else what they may do with the files and folders below; owners' bits stay."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            # Another process may remove it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                if not stat.S_ISLNK(status.st_mode) and status.st_mode & _OTHERS:
                    os.chmod(path, stat.S_IMODE(status.st_mode) & FOLDER_MODE)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = FILE_MODE, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well; if not, nothing is left of it.

    `durable`: it is on the disk before it has its name, and its name is before this returns.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, _NEW, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            yield stream
            if durable:
                stream.flush()
                os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_private(path: Path, data: bytes | str, *, mode: int = FILE_MODE, durable: bool = False) -> None:
    """Put a file there, whole or not at all. Streams that are open (/dev/stdout) are written to as they are."""
    content = data.encode() if isinstance(data, str) else data
    if str(path).startswith(_STREAMS):
        with open(path, "wb") as stream:
            stream.write(content)
        return
    with replacing(path, mode=mode, durable=durable) as stream:
        stream.write(content)


def write_new(path: Path, data: bytes | str, *, mode: int = FILE_MODE) -> None:
    """Make a file that is not there yet; raises FileExistsError, for a link too."""
    descriptor = os.open(path, _NEW, FILE_MODE)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, mode)
        stream.write(data.encode() if isinstance(data, str) else data)


def copy_file(source: Path, target: Path) -> None:
    """Make `target`, which is not there yet, with what is in `source`, and with its owner's bits."""
    write_new(target, source.read_bytes(), mode=stat.S_IMODE(source.stat().st_mode) & FOLDER_MODE)


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file that is written in place (a log that grows, a lock), made with 0600 if O_CREAT says so.

    Links are not followed. Raises PermissionError for what is not a plain file, has a second name, or belongs to
    somebody else: what we write would be elsewhere, too. A file that an earlier version made wider is tightened.
    """
    # O_NONBLOCK: opening a planted pipe must not wait for a reader. It says nothing for plain files.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            raise PermissionError(
                errno.EPERM, "it is not a plain file that belongs to you and has a single name", str(path)
            )
        if stat.S_IMODE(status.st_mode) != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time is in the block; the file is made if it is not there. A process that dies lets go."""
    lock = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
