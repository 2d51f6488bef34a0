# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose page is it? The monitor's own book of guest-physical memory, one byte a page.

The RMP says what each level may do; this book says what the monitor may agree to change. A guest names pages by
address, and every address that it names is looked up here first.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

__all__ = ["Owner", "PageBook"]

_PAGE = 4096


class Owner(enum.IntEnum):
    """Who a page belongs to."""

    NOBODY = 0
    """Not RAM."""
    GUEST = 1
    """Memory of VMPL 3: it may validate, share and give it back."""
    MONITOR = 2
    SERVICE = 3
    VMSA = 4
    """A VMSA of a VMPL 3 context: the guest's memory, but not its to change until it deletes the VCPU."""


class PageBook:
    """The owner of each page."""

    def __init__(self, pages: int) -> None:
        self._owners = bytearray(pages)

    def claim(self, gpa: int, size: int, owner: Owner) -> None:
        """Write down the owner of a range (bytes, page aligned)."""
        first, count = gpa // _PAGE, size // _PAGE
        if first + count > len(self._owners):
            raise ValueError(f"range {gpa:#x}+{size:#x} is outside the book")
        self._owners[first : first + count] = bytes((owner,)) * count

    def owner(self, gpa: int) -> Owner:
        """The owner of the page that holds `gpa`; NOBODY outside RAM."""
        page = gpa // _PAGE
        return Owner(self._owners[page]) if 0 <= page < len(self._owners) else Owner.NOBODY

    def is_guest(self, gpa: int, size: int = 1) -> bool:
        """Does every page of the range belong to the guest?"""
        if gpa < 0 or size <= 0:
            return False
        first, last = gpa // _PAGE, (gpa + size - 1) // _PAGE
        if last >= len(self._owners):
            return False
        if first == last:
            return self._owners[first] == Owner.GUEST
        return self._owners.count(Owner.GUEST, first, last + 1) == last + 1 - first

    def protected_ranges(self) -> Iterable[tuple[int, int]]:
        """(GPA, size) of every run of pages that are neither the guest's nor nobody's."""
        start = None
        for page, owner in enumerate(self._owners):
            if owner not in (Owner.GUEST, Owner.NOBODY):
                start = page if start is None else start
            elif start is not None:
                yield start * _PAGE, (page - start) * _PAGE
                start = None
        if start is not None:
            yield start * _PAGE, (len(self._owners) - start) * _PAGE
