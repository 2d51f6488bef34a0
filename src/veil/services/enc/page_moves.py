# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that change hands between the kernel and an enclave, in as few requests to VeilMon as there can be.

VeilMon looks each page up in its book: it must be the kernel's, so it is private memory of the guest, of no other
enclave, and not given twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import MOVE_PAGES, MOVE_RANGES
from veil.services.context import MonitorRefused

if TYPE_CHECKING:
    from veil.services.context import Asking, MonitorClient

__all__ = ["PagesStuck", "give", "runs", "take"]


def runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(GPA, size) of pages that follow each other, in the order in which they come."""
    start = end = -1
    for page in pages:
        if page != end:
            if end > start:
                yield start, end - start
            start = page
        end = page + PAGE_SIZE
    if end > start:
        yield start, end - start


def _batches(pages: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
    """What one request to VeilMon may name."""
    batch: list[tuple[int, int]] = []
    room = MOVE_PAGES * PAGE_SIZE
    for gpa, size in runs(sorted(pages)):
        while size:
            if not room or len(batch) == MOVE_RANGES:
                yield batch
                batch, room = [], MOVE_PAGES * PAGE_SIZE
            part = min(size, room)
            batch.append((gpa, part))
            gpa, size, room = gpa + part, size - part, room - part
    if batch:
        yield batch


class PagesStuck(MonitorRefused):
    """Not all pages could be taken, and of some that were the host does not let the kernel have them again."""

    def __init__(self, refused: MonitorRefused, pages: list[int]) -> None:
        super().__init__(refused.status, str(refused))
        self.pages = pages
        """Of the owner for whom they were taken: they must go back when the others do, and be named until then."""


def take(monitor: MonitorClient, pages: Sequence[int], target: Owner) -> Asking[None]:
    """All of these pages of the kernel's, or none. Raises MonitorRefused; PagesStuck if it is some of them."""
    taken: list[list[tuple[int, int]]] = []
    try:
        for batch in _batches(pages):
            yield from monitor.move(batch, Owner.KERNEL, target)
            taken.append(batch)
    except MonitorRefused as refused:
        stuck: list[int] = []
        for batch in taken:
            try:
                yield from monitor.move(batch, target, Owner.KERNEL)
            except MonitorRefused:
                stuck += [gpa + at for gpa, size in batch for at in range(0, size, PAGE_SIZE)]
        if stuck:
            raise PagesStuck(refused, stuck) from None
        raise


def give(monitor: MonitorClient, pages: list[int], most: int, source: Owner, keeps: int = 0) -> Asking[list[int]]:
    """Take `most` pages at most from the end of a list: the kernel has them again. Those of ENCLAVE are zeroed.

    Returns those that the host does not let go, `keeps` at most. They stay in the list, as does all that was not given.
    Raises MonitorRefused if the host keeps more.
    """
    kept: list[int] = []
    groups: list[list[int]] = []
    try:
        while groups or (pages and most > 0):
            if not groups:
                groups.append(pages[-min(most, MOVE_RANGES) :])
                del pages[-len(groups[0]) :]
                most -= len(groups[0])
            some = groups[-1]
            try:
                yield from monitor.move(list(runs(sorted(some))), source, Owner.KERNEL)
                groups.pop()
            except MonitorRefused:
                if len(kept) >= keeps:
                    raise
                groups.pop()
                # One page is enough that none of them goes: all the others do.
                if len(some) == 1:
                    kept += some
                else:
                    groups += [some[: len(some) // 2], some[len(some) // 2 :]]
    finally:
        pages[:0] = [*kept, *(page for group in groups for page in group)]
    return kept
