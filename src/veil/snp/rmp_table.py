# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of an RMP: one entry for each page between 0 and the end of RAM, of which most may be holes."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from veil.snp.errors import SnpError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["new_table"]

#: Entries of a hole beyond so many bytes are the same ones again and again.
_BLOCK = 4 << 20
# Linux on x86-64 (mmap(2)).
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = (1 << 64) - 1


def new_table(pages: int, holes: Sequence[range], nowhere: NDArray[Any]) -> NDArray[Any]:
    """Entries of zeros, and `nowhere` in the holes.

    Memory is taken for what is RAM: a hole of half a terabyte has 1 GiB of entries, which are one block of memory at
    many addresses. Raises SnpError if there is no room.
    """
    size = nowhere.dtype.itemsize
    far = [hole for hole in holes if len(hole) * size >= 2 * _BLOCK]
    table = _mapped(pages, nowhere.dtype) if far else np.zeros(pages, dtype=nowhere.dtype)
    for hole in holes:
        first, end = hole.start * size, hole.stop * size
        if hole in far:
            first_block, last_block = -(-first // _BLOCK) * _BLOCK, end // _BLOCK * _BLOCK
            table[hole.start : first_block // size] = nowhere
            table[last_block // size : hole.stop] = nowhere
            _repeat(table.ctypes.data, range(first_block, last_block, _BLOCK), nowhere)
        else:
            table[hole.start : hole.stop] = nowhere
    return table


def _mapped(pages: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        mapping = mmap.mmap(-1, pages * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, OverflowError, ValueError) as error:
        raise SnpError(f"cannot reserve an RMP of {pages} pages: {error}") from error
    return np.frombuffer(mapping, dtype=dtype)


def _repeat(base: int, offsets: range, entry: NDArray[Any]) -> None:
    """Put one block of these entries at each of the offsets. They go when the table's own mapping goes."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.mmap.restype = ctypes.c_size_t
    file = os.memfd_create("rmp", os.MFD_CLOEXEC)
    try:
        os.write(file, np.full(_BLOCK // entry.dtype.itemsize, entry).tobytes())
        for offset in offsets:
            # Private: whatever should write there changes that place alone.
            flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
            where = library.mmap(base + offset, _BLOCK, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, 0)
            if where == _MAP_FAILED:
                raise SnpError(f"cannot map an RMP's entries: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(file)
