# SPDX-License-Identifier: GPL-2.0-or-later
"""A piece of verified code: its rules, and the pages in which it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import MOVE_CHANGES, MOVE_PAGES, MOVE_RANGES, Change
from veil.services.context import Asking, GuestMemory, MonitorClient, MonitorRefused
from veil.services.kci.explain_code import CodeRules, Configuration
from veil.services.kci.guarded_pages import GuardedPages
from veil.services.kci.patches import Patch, decide

__all__ = ["GuardedCode", "leave_pages", "move_pages"]

_MOVE_BYTES = MOVE_PAGES * PAGE_SIZE
#: A kernel that has the host take a module's pages away must not keep the services busy with each of them. Nor may a
#: request ask VeilMon without end: each of these costs up to 30 questions.
_MAX_REFUSED = 4


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
    length, offset). Raises MonitorRefused. What the host keeps from VeilMon meanwhile stays as it is then."""
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
            back = [Change(change.target, change.source, change.ranges) for change in changes]
            yield from _as_far_as_it_goes(monitor, back, lambda _: None, [])
        raise


def leave_pages(
    monitor: MonitorClient,
    *moves: tuple[Sequence[int], Owner, Owner],
    moved: Callable[[Change], None] = lambda _: None,
) -> Asking[None]:
    """The same where code leaves, or is given back, and nothing makes it code again: each page that VeilMon can change,
    though the host keeps some others. Raises the first MonitorRefused when all have been tried."""
    refused: list[MonitorRefused] = []
    for changes in _requests(moves):
        yield from _as_far_as_it_goes(monitor, changes, moved, refused)
    if refused:
        raise refused[0]


def _as_far_as_it_goes(
    monitor: MonitorClient, changes: Sequence[Change], moved: Callable[[Change], None], refused: list[MonitorRefused]
) -> Asking[None]:
    """By halves, down to single pages that are `refused`; after many of these no more are tried."""
    parts = [changes]
    while parts and len(refused) < _MAX_REFUSED:
        part = parts.pop()
        try:
            yield from monitor.change(part)
        except MonitorRefused as error:
            halves = _halves(part)
            if halves is None:
                refused.append(error)
            else:
                parts += reversed(halves)
        else:
            for change in part:
                moved(change)


def _halves(changes: Sequence[Change]) -> tuple[Sequence[Change], Sequence[Change]] | None:
    """None for a single page."""
    if len(changes) > 1:
        return changes[: len(changes) // 2], changes[len(changes) // 2 :]
    source, target, ranges = changes[0]
    if len(ranges) == 1:
        gpa, size = ranges[0]
        if size == PAGE_SIZE:
            return None
        half = size // PAGE_SIZE // 2 * PAGE_SIZE
        ranges = [(gpa, half), (gpa + half, size - half)]
    middle = len(ranges) // 2
    return [Change(source, target, ranges[:middle])], [Change(source, target, ranges[middle:])]


def _requests(moves: Sequence[tuple[Sequence[int], Owner, Owner]]) -> Iterable[list[Change]]:
    """As few as VeilMon's bounds allow: most are one."""
    if sum([len(pages) for pages, _, _ in moves]) > MOVE_RANGES or len(moves) > MOVE_CHANGES:
        return _parted(moves)
    changes = [Change(source, target, _ranges(pages)) for pages, source, target in moves if pages]
    return [changes] if changes else []


def _parted(moves: Iterable[tuple[Sequence[int], Owner, Owner]]) -> Iterator[list[Change]]:
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
