# SPDX-License-Identifier: GPL-2.0-or-later
"""What an honest host refuses to do to memory of more privileged levels, whoever below them asks.

The RMP keeps a level from touching a more privileged one's memory. It does not keep the host from taking it away
(RMPUPDATE), and a page that was taken away has lost what was on it. A compromised kernel needs no more than to ask: one
page state change would erase what VeilS-LOG keeps. So the host is told at launch what belongs to which level, and looks
there before it acts on an address that a guest named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from veil.formats.domains import VMPLS
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.errors import HostError, LaunchRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ProtectedRange", "Protection"]


@dataclass(frozen=True, slots=True)
class ProtectedRange:
    """Whole pages that belong to `vmpl` and more privileged levels, of which less privileged ones may ask nothing."""

    gpa: int
    size: int
    vmpl: int


class Protection:
    """The protected ranges of one guest; none: the host does whatever anybody asks."""

    def __init__(self, ranges: Iterable[ProtectedRange] = ()) -> None:
        self._ranges = tuple(ranges)
        #: for each level, [start, end) of what is out of its reach
        self._closed = [
            [(item.gpa, item.gpa + item.size) for item in self._ranges if item.vmpl < vmpl] for vmpl in range(VMPLS)
        ]

    @classmethod
    def at_launch(cls, ranges: Iterable[ProtectedRange], ram: Sequence[tuple[int, int]]) -> Protection:
        """Raises LaunchRefused for ranges that are not whole pages of guest memory."""
        found = tuple(ranges)
        for item in found:
            inside = any(start <= item.gpa and item.gpa + item.size <= start + size for start, size in ram)
            aligned = item.size > 0 and not item.gpa % PAGE_SIZE and not item.size % PAGE_SIZE
            if not inside or not aligned or item.vmpl not in range(VMPLS):
                raise LaunchRefused(
                    f"the protected range {item.gpa:#x}+{item.size:#x} of VMPL {item.vmpl} is not whole pages of "
                    "guest memory"
                )
        return cls(found)

    def allows(self, vmpl: int, gpa: int, length: int) -> bool:
        """May this level ask for something to be done to all of the range?"""
        return all(end <= gpa or gpa + length <= start for start, end in self._closed[vmpl])

    def dump(self) -> list[list[int]]:
        return [[item.gpa, item.size, item.vmpl] for item in self._ranges]

    @classmethod
    def load(cls, state: Any) -> Protection:
        """From a snapshot. Raises HostError."""
        try:
            ranges = [ProtectedRange(int(gpa), int(size), int(vmpl)) for gpa, size, vmpl in state]
        except (TypeError, ValueError) as error:
            raise HostError(f"snapshot: the protected ranges are damaged ({error!r})") from error
        return cls(ranges)
