# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose page is it? The monitor's own book of guest-physical memory, one byte a page.

The RMP says what each level may do; this book says what the monitor may agree to change. A kernel names pages by
address, and every address that it names is looked up here first. What an owner's pages may be used for stands in
`page_rights`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.monitor.page_rights import ROWS, TRANSITIONS

__all__ = ["Owner", "PageBook"]


_KERNEL = int(Owner.KERNEL)
_CHANGEABLE = bytes(owner for owner, row in ROWS.items() if row.kernel_may_change)
_DATA = bytes(owner for owner, row in ROWS.items() if row.kernel_data)
_ALLOWED = frozenset((int(before), int(after)) for before, after in TRANSITIONS)
_RUN = re.compile(rb"(.)\1*", re.DOTALL)


class PageBook:
    """The owner of each page."""

    def __init__(self, pages: int) -> None:
        self._owners = bytearray(pages)

    def claim(self, gpa: int, size: int, owner: Owner) -> None:
        """Write down the owner of a range (bytes, page aligned), whatever it was before."""
        first, count = gpa // PAGE_SIZE, size // PAGE_SIZE
        if gpa < 0 or size < 0 or first + count > len(self._owners):
            raise ValueError(f"range {gpa:#x}+{size:#x} is outside the book")
        self._owners[first : first + count] = bytes((owner,)) * count

    def move(self, gpa: int, size: int, owner: Owner) -> None:
        """The same for a change that `TRANSITIONS` allows for each page; raises ValueError for another one."""
        first, count = gpa // PAGE_SIZE, size // PAGE_SIZE
        for before in set(self._owners[first : first + count]):
            if before != owner and (before, owner) not in _ALLOWED:
                raise ValueError(f"a page of {Owner(before).name} never becomes one of {owner.name}")
        self.claim(gpa, size, owner)

    def owner(self, gpa: int) -> Owner:
        """The owner of the page that holds `gpa`; NOBODY outside RAM."""
        page = gpa // PAGE_SIZE
        return Owner(self._owners[page]) if 0 <= page < len(self._owners) else Owner.NOBODY

    def is_all(self, owner: Owner, gpa: int, size: int) -> bool:
        """Is every page of the range this owner's? False outside RAM."""
        if gpa < 0 or size <= 0:
            return False
        first, end = gpa // PAGE_SIZE, (gpa + size - 1) // PAGE_SIZE + 1
        return end <= len(self._owners) and self._owners.count(int(owner), first, end) == end - first

    def is_kernel(self, gpa: int, size: int = 1) -> bool:
        """Is every page of the range the kernel's to do with what it likes?"""
        return self._all(gpa, size, _CHANGEABLE)

    def first_not_kernel(self, pages: Iterable[int]) -> int | None:
        """The first of these pages (GPAs) that is not the kernel's to do with what it likes."""
        owners, count = self._owners, len(self._owners)
        for gpa in pages:
            page = gpa // PAGE_SIZE
            if not 0 <= page < count or owners[page] not in _CHANGEABLE:
                return gpa
        return None

    def is_kernel_data(self, gpa: int, size: int = 1) -> bool:
        """May the kernel read and write every page of the range? Calling areas, too: it passes arguments in them."""
        return self._all(gpa, size, _DATA)

    def _all(self, gpa: int, size: int, owners: bytes) -> bool:
        if gpa < 0 or size <= 0:
            return False
        first, end = gpa // PAGE_SIZE, (gpa + size - 1) // PAGE_SIZE + 1
        if end > len(self._owners):
            return False
        # What PVALIDATE asks again and again has one owner.
        if self._owners.count(_KERNEL, first, end) == end - first:
            return True
        return not self._owners[first:end].translate(None, owners)

    def runs(self) -> Iterator[tuple[Owner, int, int]]:
        """(owner, GPA, size) of every run of pages that have one owner."""
        for run in _RUN.finditer(self._owners):
            yield Owner(run[1][0]), run.start() * PAGE_SIZE, (run.end() - run.start()) * PAGE_SIZE

    def ranges(self, owner: Owner) -> Iterator[tuple[int, int]]:
        """(GPA, size) of every run of pages of one owner."""
        return ((gpa, size) for found, gpa, size in self.runs() if found is owner)

    def count(self, owner: Owner) -> int:
        """How many pages it has."""
        return self._owners.count(int(owner))
