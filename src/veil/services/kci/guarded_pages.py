# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that VMPL 3 cannot write: what is stored there, the service stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import GuestMemory
from veil.services.kci.errors import KciError

__all__ = ["GuardedPages", "read_pages"]


class GuardedPages:
    """`address` is where the kernel has them, `pages` are their GPAs in the order of their addresses."""

    def __init__(self, address: int, pages: Sequence[int], guest: GuestMemory) -> None:
        self.address = address
        self.pages = tuple(pages)
        self._guest = guest

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {gpa: number for number, gpa in enumerate(self.pages)}

    @property
    def size(self) -> int:
        """Bytes, whole pages."""
        return len(self.pages) * PAGE_SIZE

    def address_of(self, gpa: int) -> int | None:
        """The address of a GPA's byte; None if it is not in these pages."""
        number = self._numbers.get(gpa - gpa % PAGE_SIZE)
        return None if number is None else self.address + number * PAGE_SIZE + gpa % PAGE_SIZE

    def _parts(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """(GPA, size) of the pages' parts."""
        while length:
            number, offset = divmod(address - self.address, PAGE_SIZE)
            if not 0 <= number < len(self.pages):
                raise KciError(f"{address:#x} is not in the pages at {self.address:#x}")
            part = min(length, PAGE_SIZE - offset)
            yield self.pages[number] + offset, part
            address, length = address + part, length - part

    def read(self, address: int, length: int) -> bytes:
        """What is there now. Raises KciError for what is not in these pages."""
        start = address - self.address
        first, end = start // PAGE_SIZE, -(-(start + length) // PAGE_SIZE)
        if start < 0 or end > len(self.pages):
            raise KciError(f"{address:#x}+{length:#x} is not in the pages at {self.address:#x}")
        content = read_pages(self._guest, self.pages[first:end])
        return content[start - first * PAGE_SIZE :][:length]

    def _write(self, address: int, data: bytes) -> None:
        for gpa, size in self._parts(address, len(data)):
            self._guest.write(gpa, data[:size])
            data = data[size:]


def read_pages(guest: GuestMemory, pages: Iterable[int]) -> bytes:
    """What they hold, one after the other."""
    return b"".join([guest.read(gpa, PAGE_SIZE) for gpa in pages])
