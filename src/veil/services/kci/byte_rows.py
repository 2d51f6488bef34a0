# SPDX-License-Identifier: GPL-2.0-or-later
"""Many small pieces of code at once, as rows of bytes: one row for each place."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Places", "branch_targets", "branches", "cut", "distinct", "member", "put", "rows", "same"]

Bytes: TypeAlias = NDArray[np.uint8]
Places: TypeAlias = NDArray[np.int64]
_Number = TypeVar("_Number", np.uint64, np.uint32)


def distinct(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each value once, in order. (numpy's unique() hashes first, which takes three times as long.)"""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def member(some: NDArray[_Number], ordered: NDArray[_Number]) -> NDArray[np.bool_]:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(some), bool)
    places = np.minimum(np.searchsorted(ordered, some), len(ordered) - 1)
    return np.asarray(ordered[places] == some)


def cut(code: Bytes, offsets: Places, width: int) -> Bytes:
    """Rows of `width` bytes of `code`; what would lie behind its end is the last byte again."""
    if len(offsets) and int(offsets.max()) + width <= len(code):
        # Rows that overlap in place of a table of all places: three times as fast.
        whole = np.ascontiguousarray(code)
        windows: Bytes = np.ndarray((len(whole) - width + 1, width), np.uint8, whole, strides=(1, 1))
        return windows[offsets]
    places = offsets[:, None] + np.arange(width)
    return np.asarray(code[np.minimum(places, len(code) - 1)])


def put(code: Bytes, offsets: Places, content: Bytes, lengths: Places | int | None = None) -> None:
    """Write rows, the first `lengths` bytes of each."""
    width = content.shape[1]
    for column in range(width):
        if lengths is None:
            code[offsets + column] = content[:, column]
        else:
            chosen = np.broadcast_to(column < np.asarray(lengths), offsets.shape)
            code[offsets[chosen] + column] = content[chosen, column]


def rows(content: bytes, count: int, width: int | None = None) -> Bytes:
    """The same bytes `count` times, filled up with zeros to `width`."""
    return np.tile(np.frombuffer(content.ljust(width or 0, b"\0"), np.uint8), (count, 1))


def same(some: Bytes, others: Bytes, lengths: Places | int | None = None) -> NDArray[np.bool_]:
    """Which rows are equal, in their first `lengths` bytes."""
    equal = some == others
    if lengths is not None:
        equal |= np.arange(some.shape[1]) >= np.broadcast_to(np.asarray(lengths), len(some))[:, None]
    return np.asarray(equal.all(axis=1))


def branches(opcode: int, places: NDArray[np.uint64], targets: NDArray[np.uint64] | int) -> Bytes:
    """CALL or JMP with a 32-bit displacement, 5 bytes a row, from addresses to addresses in the same 2 GiB."""
    distance = np.broadcast_to(np.asarray(targets, np.uint64), places.shape) - places - np.uint64(5)
    found = np.empty((len(places), 5), np.uint8)
    found[:, 0] = opcode
    found[:, 1:] = distance.astype("<u4")[:, None].view(np.uint8)
    return found


def branch_targets(places: NDArray[np.uint64], content: Bytes, at: int = 1) -> NDArray[np.uint64]:
    """Where branches at addresses lead whose 32-bit displacement, the last of the instruction, is at column `at`."""
    distance = np.ascontiguousarray(content[:, at : at + 4]).view("<i4")[:, 0].astype(np.int64)
    return places + np.uint64(at + 4) + distance.astype(np.uint64)
