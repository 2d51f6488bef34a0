# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose page is it? The monitor's own book of guest-physical memory, one byte a page.

The RMP says what each level may do; this book says what the monitor may agree to change. A kernel names pages by
address, and every address that it names is looked up here first.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

__all__ = ["Owner", "PageBook"]

_PAGE = 4096


class Owner(enum.IntEnum):
    """Who a page belongs to."""

    NOBODY = 0
    """Not RAM."""
    KERNEL = 1
    """Memory of VMPL 3: it may validate, share and give it back."""
    MONITOR = 2
    SERVICE = 3
    VMSA = 4
    """A VMSA of VMPL 3: the kernel's memory, but not its to change until it deletes the VCPU."""
    CAA = 5
    """A calling area of VMPL 3: the kernel's to read and write, but it stays validated memory while it is in use."""
    BLOCK = 6
    """A request block of VMPL 3 for the services: like a calling area, and VMPL 1 reaches it too."""


_KERNEL, _CAA, _BLOCK = int(Owner.KERNEL), int(Owner.CAA), int(Owner.BLOCK)
#: Runs of pages that VMPL 3 has no write permission for.
_KEPT = re.compile(b"[%c-%c]+" % (Owner.MONITOR, Owner.VMSA))


class PageBook:
    """The owner of each page."""

    def __init__(self, pages: int) -> None:
        self._owners = bytearray(pages)

    def claim(self, gpa: int, size: int, owner: Owner) -> None:
        """Write down the owner of a range (bytes, page aligned)."""
        first, count = gpa // _PAGE, size // _PAGE
        if gpa < 0 or size < 0 or first + count > len(self._owners):
            raise ValueError(f"range {gpa:#x}+{size:#x} is outside the book")
        self._owners[first : first + count] = bytes((owner,)) * count

    def owner(self, gpa: int) -> Owner:
        """The owner of the page that holds `gpa`; NOBODY outside RAM."""
        page = gpa // _PAGE
        return Owner(self._owners[page]) if 0 <= page < len(self._owners) else Owner.NOBODY

    def is_kernel(self, gpa: int, size: int = 1) -> bool:
        """Is every page of the range the kernel's to do with what it likes?"""
        return self._all(gpa, size, data=False)

    def is_kernel_data(self, gpa: int, size: int = 1) -> bool:
        """May the kernel read and write every page of the range? Calling areas, too: it passes arguments in them."""
        return self._all(gpa, size, data=True)

    def _all(self, gpa: int, size: int, *, data: bool) -> bool:
        if gpa < 0 or size <= 0:
            return False
        owners = self._owners
        first, end = gpa // _PAGE, (gpa + size - 1) // _PAGE + 1
        if end > len(owners):
            return False
        found = owners.count(_KERNEL, first, end)
        if data and found != end - first:
            found += owners.count(_CAA, first, end) + owners.count(_BLOCK, first, end)
        return found == end - first

    def kept_ranges(self) -> Iterator[tuple[int, int]]:
        """(GPA, size) of every run of pages that VMPL 3 may not write: the monitor's, the services', VMSAs."""
        for run in _KEPT.finditer(self._owners):
            yield run.start() * _PAGE, (run.end() - run.start()) * _PAGE

    def count(self, owner: Owner) -> int:
        """How many pages it has."""
        return self._owners.count(int(owner))
