# SPDX-License-Identifier: GPL-2.0-or-later
"""A full disk, however it shows: as an error of our own writes, or somewhere in what a compiler, pip or apt says."""

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

__all__ = ["describe_full_disk", "is_full", "refuse_full_disk", "tool_environment"]

_SAID = ("No space left on device", "Disk quota exceeded", "write error", "File too large")
# Tools that hide why they failed leave this little, or less.
_AS_GOOD_AS_FULL = 1 << 20


def is_full(error: OSError) -> bool:
    """Does the error say that a disk, or what the user may have of it, is full?"""
    if isinstance(error, shutil.Error):  # of copytree: it has no number, only words for each file
        return any(words in str(error) for words in _SAID)
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def refuse_full_disk(output: str, directory: Path) -> None:
    """Raises OSError if a tool that failed with this output in this directory found no room."""
    full = any(words in output for words in _SAID)
    with contextlib.suppress(OSError):
        full = full or shutil.disk_usage(directory).free < _AS_GOOD_AS_FULL
    if full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def describe_full_disk(what: str, place: Path) -> str:
    """The line for a cache that cannot take `what`: the place, and what to do."""
    return (
        f"the disk is full: cannot store {what} in {place} "
        "(make room, for example with `veil cache clear`, or set XDG_CACHE_HOME to a directory on another disk)"
    )


def tool_environment(directory: Path | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a tool that works in `directory`: English messages, and temporary files beside the others, not in /tmp.

    So there is one place that can be full, and what a killed tool leaves is cleared with the directory.
    """
    environment = {**os.environ, "LC_ALL": "C", **(more or {})}
    if directory is not None:
        environment["TMPDIR"] = str(directory)
    return environment
