# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a user names: kernels, firmware, IGVM files, programs, enclaves' images."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from veil.errors import describe
from veil.formats.sizes import format_size
from veil.guest.errors import GuestImageError

__all__ = ["read_named_file"]


def read_named_file(path: str | Path, what: str, most: int) -> bytes:
    """The file's content, at most `most` bytes; `what` it is to be, with its article, is for the message.

    Raises GuestImageError for what cannot be read, is larger, or is no ordinary file: nobody waits for a pipe, or reads
    a device without an end.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise GuestImageError(f"{path}: cannot read {what}: it is no ordinary file")
            if status.st_size > most:
                raise GuestImageError(f"{path}: too large for {what}: more than {format_size(most)}")
            return stream.read(most)
    except OSError as error:
        raise GuestImageError(f"{path}: cannot read {what}: {describe(error)}") from error
    except MemoryError as error:
        raise GuestImageError(f"{path}: cannot read {what}: there is not enough memory for it") from error
