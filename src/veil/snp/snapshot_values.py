# SPDX-License-Identifier: GPL-2.0-or-later
"""Values out of a snapshot, which anybody may have written."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from veil.formats.errors import FormatError
from veil.snp.errors import SnapshotError, SnpError

__all__ = ["UNUSABLE", "explained", "integer"]

#: what reading values out of a file that anybody may have written can end in
UNUSABLE = (
    SnpError, KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, AssertionError,
    ctypes.ArgumentError, RecursionError, MemoryError, struct.error, FormatError,
)  # fmt: skip


@contextmanager
def explained(words: str) -> Iterator[None]:
    """What goes wrong meanwhile is a SnapshotError that begins with these words."""
    try:
        yield
    except UNUSABLE as error:
        if isinstance(error, SnapshotError):
            raise
        raise SnapshotError(f"{words}: {error!r}") from error


def integer(value: Any, what: str) -> int:
    """The value, if it is a u64; raises SnapshotError."""
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise SnapshotError(f"the {what} is not an unsigned 64-bit number: {value!r:.40}")
    return value
