# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical memory: one anonymous mapping that Python, numpy and the engine's C code share."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from veil.formats.board import HIGH_MEMORY, LOW_MEMORY_END
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.snp.errors import SnpError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_FAR_MEMORY", "Memory", "address_space", "check_far_memory", "holes", "ram_ranges"]


#: Where far memory ends: tables of a machine have room for each page below it.
MAX_FAR_MEMORY = 1 << 40

# Linux on x86-64; the mmap module has no name for it before Python 3.13.
_MAP_NORESERVE = 0x4000

# Below this, clearing memory is cheaper than a system call and the page faults after it.
_RELEASE_THRESHOLD = 16 * PAGE_SIZE

#: pages that are looked at together
_AT_ONCE = 512
#: of an entry of /proc/self/pagemap
_PRESENT_OR_SWAPPED = 3 << 62


def _describe(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def ram_ranges(size: int, firmware: int = 0, far: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """(GPA, length) of each piece of so much RAM: from 3 GiB on it lies above the devices' hole.

    `firmware` bytes more end at 4 GiB: there processors begin. `far` is a piece by itself above all others.
    """
    pieces = [(0, min(size, LOW_MEMORY_END))]
    if firmware:
        pieces.append((HIGH_MEMORY - firmware, firmware))
    if size > LOW_MEMORY_END:
        pieces.append((HIGH_MEMORY, size - LOW_MEMORY_END))
    return pieces if far is None else [*pieces, far]


def check_far_memory(piece: tuple[int, int], above: int) -> None:
    """Raises SnpError if it is not whole 2 MiB from `above` on, where the other RAM ends."""
    start, length = piece
    if start % PAGE_SIZE_2M or length % PAGE_SIZE_2M or length <= 0 or not above <= start <= MAX_FAR_MEMORY - length:
        raise SnpError(
            f"far memory is whole 2 MiB between {above:#x} and {MAX_FAR_MEMORY:#x}, not {length:#x} bytes at {start:#x}"
        )


def holes(pieces: Sequence[tuple[int, int]]) -> list[range]:
    """The pages between pieces of RAM, which are in the order of their addresses."""
    ends = [(start + length) // PAGE_SIZE for start, length in pieces[:-1]]
    gaps = [range(end, start // PAGE_SIZE) for end, (start, _) in zip(ends, pieces[1:], strict=True)]
    return [gap for gap in gaps if gap]


def address_space(pieces: Sequence[tuple[int, int]]) -> int:
    """Guest-physical bytes for these pieces of RAM, the holes included."""
    start, length = pieces[-1]
    return start + length


class Memory:
    """The machine's RAM, indexed by guest-physical address (the holes between pieces of RAM included).

    Pages that nobody wrote take no room.  Nothing here checks who is asking: guest and host reach memory through
    views.
    """

    def __init__(self, size: int) -> None:
        _check_size(size)
        try:
            mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        except (OSError, OverflowError, ValueError) as error:
            raise SnpError(f"cannot reserve {size} bytes of guest memory: {_describe(error)}") from error
        self._set(mapping, anonymous=True)

    @classmethod
    def from_file(cls, fileno: int, size: int, offset: int = 0) -> Memory:
        """Memory that starts with the content of a file, copied page by page as it is written; the file stays."""
        _check_size(size)
        self = cls.__new__(cls)
        try:
            mapping = mmap.mmap(
                fileno, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset
            )
        except (OSError, OverflowError, ValueError) as error:
            raise SnpError(f"cannot map {size} bytes of guest memory from a file: {_describe(error)}") from error
        self._set(mapping, anonymous=False)
        return self

    def _set(self, mapping: mmap.mmap, *, anonymous: bool) -> None:
        self.size = len(mapping)
        self.pages = self.size // PAGE_SIZE
        self.mapping = mapping
        self.buf = memoryview(mapping)
        #: one row of 512 64-bit words per page
        self.words: NDArray[np.uint64] = np.frombuffer(mapping, dtype="<u8").reshape(-1, PAGE_SIZE // 8)
        self.address: int = self.words.ctypes.data
        self._anonymous = anonymous

    def written_pages(self, first: int, count: int) -> NDArray[np.bool_]:
        """For each of these pages: does it hold anything but zeros?"""
        words = self.words[first : first + count]
        touched = self._touched_pages(first, count) if self._anonymous and count > _AT_ONCE else None
        written: NDArray[np.bool_]
        if touched is None:
            written = np.any(words, axis=1)
            return written
        # Reading pages that nobody touched would make the operating system back each of them.
        written = np.zeros(count, dtype=np.bool_)
        for start in range(0, count, _AT_ONCE):
            block = slice(start, start + _AT_ONCE)
            if touched[block].any():
                written[block] = np.any(words[block], axis=1)
        return written

    def _touched_pages(self, first: int, count: int) -> NDArray[np.bool_] | None:
        """Which pages does the operating system hold anything for (proc(5), pagemap)? None: it does not say."""
        if mmap.PAGESIZE != PAGE_SIZE:
            return None
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
                data = os.pread(pagemap.fileno(), 8 * count, 8 * (self.address // PAGE_SIZE + first))
        except OSError:
            return None
        if len(data) != 8 * count:
            return None
        touched: NDArray[np.bool_] = np.frombuffer(data, dtype="<u8") & _PRESENT_OR_SWAPPED != 0
        return touched

    def zero(self, gpa: int, length: int) -> None:
        """Clear a range, giving whole pages back to the operating system where that is cheaper."""
        end = gpa + length
        first = -(-gpa // PAGE_SIZE) * PAGE_SIZE
        last = end // PAGE_SIZE * PAGE_SIZE
        if last - first < _RELEASE_THRESHOLD:
            self.mapping[gpa:end] = bytes(length)
            return
        self.mapping[gpa:first] = bytes(first - gpa)
        if self._anonymous:
            self.mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
        else:
            # Released pages of a file mapping would come back with the file's content.
            block = self.words[first // PAGE_SIZE : last // PAGE_SIZE]
            block[block.any(axis=1)] = 0
        self.mapping[last:end] = bytes(end - last)


def _check_size(size: int) -> None:
    if size <= 0 or size % PAGE_SIZE:
        raise SnpError(f"guest memory must be a positive number of 4 KiB pages, not {size} bytes")
