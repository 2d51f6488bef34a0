# SPDX-License-Identifier: GPL-2.0-or-later
"""The pristine kernel: what the launch measured, by the addresses at which the kernel runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from veil.services.kci.errors import ImageError
from veil.services.kci.kallsyms import Symbols, find_symbols

__all__ = ["AddressRange", "KernelImage", "Segment", "text_range"]


@dataclass(frozen=True)
class AddressRange:
    """Virtual addresses from `start` up to, not including, `end`."""

    start: int
    end: int
    name: str = ""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def __str__(self) -> str:
        return f"{self.name} {self.start:#x}-{self.end:#x}".strip()


@dataclass(frozen=True)
class Segment:
    """A LOAD segment of vmlinux as it lies in measured memory, without the part that starts as zeros."""

    virtual: int
    physical: int
    data: bytes = field(repr=False)

    @property
    def range(self) -> AddressRange:
        """Its virtual addresses."""
        return AddressRange(self.virtual, self.virtual + len(self.data))


class KernelImage:
    """A vmlinux before its first instruction: every table that later changes its text is still there.

    `segments` are copies that nobody else can change. Symbols come from the image's own kallsyms tables, so nothing
    but the segments need be measured. Raises ImageError for segments that overlap; `symbols` raises it where there are
    no kallsyms tables.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(sorted(segments, key=lambda segment: segment.virtual))
        for before, after in zip(self.segments, self.segments[1:], strict=False):
            if before.range.end > after.virtual:
                raise ImageError(f"the kernel's segments overlap at {after.virtual:#x}")
        self._bounds = [(piece.virtual, piece.virtual + len(piece.data), piece.data) for piece in self.segments]

    @cached_property
    def symbols(self) -> Symbols:
        """The image's kallsyms."""
        for segment in self.segments:
            found = find_symbols(segment.data, segment.virtual)
            if found is not None:
                return found
        raise ImageError("the kernel image has no kallsyms tables that can be read (CONFIG_KALLSYMS_ALL is needed)")

    def read(self, address: int, length: int) -> bytes:
        """Bytes by virtual address; raises ImageError where they are not all inside of one segment."""
        for start, end, data in self._bounds:
            if start <= address and address + length <= end:
                return data[address - start : address - start + length]
        raise ImageError(f"{address:#x}+{length:#x} is not in the kernel image")

    def between(self, start: str, end: str) -> tuple[int, bytes] | None:
        """What lies between two of the linker's symbols, with its address; None where the image has none of them."""
        first, last = self.symbols.get(start), self.symbols.get(end)
        if first is None and last is None:
            return None
        if first is None or last is None or last < first:
            raise ImageError(f"the kernel image has no sound pair of {start} and {end}")
        return first, self.read(first, last - first) if last > first else b""


def text_range(image: KernelImage) -> AddressRange:
    """The kernel's text: from _text up to _etext, as the kernel write-protects it. Raises ImageError."""
    start, end = image.symbols["_text"], image.symbols["_etext"]
    if end <= start:
        raise ImageError(f"the kernel's text ends at {end:#x} before it starts at {start:#x}")
    return AddressRange(start, end, "text")
