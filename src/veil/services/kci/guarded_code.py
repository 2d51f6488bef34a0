# SPDX-License-Identifier: GPL-2.0-or-later
"""A piece of verified code: its rules, and the pages in which it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import MOVE_CHANGES, MOVE_PAGES, MOVE_RANGES, Change
from veil.services.context import Asking, GuestMemory, MonitorClient
from veil.services.kci.explain_code import CodeRules, Configuration
from veil.services.kci.guarded_pages import GuardedPages
from veil.services.kci.patches import Patch, decide

__all__ = ["GuardedCode", "leave_pages", "move_pages"]

_MOVE_BYTES = MOVE_PAGES * PAGE_SIZE


class GuardedCode(GuardedPages):
    """A piece of code with its rules."""

    def __init__(self, rules: CodeRules, address: int, pages: Sequence[int], guest: GuestMemory) -> None:
        super().__init__(address, pages, guest)
        self.rules = rules

    def patch(self, configuration: Configuration, address: int, data: bytes) -> Patch:
        """Store, if it is a step by which Linux patches a site. Raises PatchRefused."""
        patch = decide(self.rules, configuration, address, data, self.read)
        self._write(address, data)
        return patch


def move_pages(
    monitor: MonitorClient,
    *moves: tuple[Sequence[int], Owner, Owner],
    copy: tuple[Sequence[int], int, int] | None = None,
) -> Asking[None]:
    """Pages (GPAs) of one owner become another's: all of them, or none. Before that, others are copied in (pages,
    length, offset). Raises MonitorRefused."""
    done: list[list[Change]] = []
    try:
        for changes in _requests(moves):
            if copy is not None and not done:
                yield from monitor.copy_and_change(*copy, changes)
            else:
                yield from monitor.change(changes)
            done.append(changes)
    except Exception:
        for changes in reversed(done):
            yield from monitor.change([Change(change.target, change.source, change.ranges) for change in changes])
        raise


def leave_pages(
    monitor: MonitorClient, *moves: tuple[Sequence[int], Owner, Owner], moved: Callable[[Change], None]
) -> Asking[None]:
    """The same where code leaves, which nothing makes code again: what was `moved` stays so, whatever is refused after
    it. Raises MonitorRefused."""
    for changes in _requests(moves):
        yield from monitor.change(changes)
        for change in changes:
            moved(change)


def _requests(moves: Iterable[tuple[Sequence[int], Owner, Owner]]) -> Iterator[list[Change]]:
    """As few as VeilMon's bounds allow: most are one."""
    changes: list[Change] = []
    ranges = left = 0
    for pages, source, target in moves:
        some: list[tuple[int, int]] = []
        for gpa, size in _ranges(pages):
            if not ranges or size > left or (not some and len(changes) == MOVE_CHANGES):
                if changes:
                    yield changes
                changes, some, ranges, left = [], [], MOVE_RANGES, _MOVE_BYTES
            if not some:
                changes.append(Change(source, target, some))
            some.append((gpa, size))
            ranges, left = ranges - 1, left - size
    if changes:
        yield changes


def _ranges(pages: Iterable[int]) -> list[tuple[int, int]]:
    """(GPA, size) of neighbours together, none longer than a request may name."""
    found = list[tuple[int, int]]()
    start = end = -1
    for gpa in sorted(pages):
        if gpa != end or end - start == _MOVE_BYTES:
            if end > start:
                found.append((start, end - start))
            start = gpa
        end = gpa + PAGE_SIZE
    if end > start:
        found.append((start, end - start))
    return found
