# SPDX-License-Identifier: GPL-2.0-or-later
"""A piece of verified code: its rules, and the pages in which it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import MOVE_CHANGES, MOVE_PAGES, MOVE_RANGES, Change
from veil.services.context import Asking, GuestMemory, MonitorClient
from veil.services.kci.errors import KciError
from veil.services.kci.explain_code import CodeRules, Configuration
from veil.services.kci.patches import Patch, decide

__all__ = ["GuardedCode", "leave_pages", "move_pages"]

_MOVE_BYTES = MOVE_PAGES * PAGE_SIZE


class GuardedCode:
    """Code that VMPL 3 cannot write: what is stored into it, the service stores.

    `address` is where it runs, `pages` are the GPAs of its pages in the order of their addresses.
    """

    def __init__(self, rules: CodeRules, address: int, pages: Sequence[int], guest: GuestMemory) -> None:
        self.rules = rules
        self.address = address
        self.pages = tuple(pages)
        self._guest = guest
        self._numbers = {gpa: number for number, gpa in enumerate(self.pages)}

    @property
    def size(self) -> int:
        """Bytes, whole pages."""
        return len(self.pages) * PAGE_SIZE

    def address_of(self, gpa: int) -> int | None:
        """Where a GPA's byte runs; None if it is not in this code."""
        number = self._numbers.get(gpa - gpa % PAGE_SIZE)
        return None if number is None else self.address + number * PAGE_SIZE + gpa % PAGE_SIZE

    def _parts(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """(GPA, size) of the pages' parts."""
        while length:
            number, offset = divmod(address - self.address, PAGE_SIZE)
            if not 0 <= number < len(self.pages):
                raise KciError(f"{address:#x} is not in the code at {self.address:#x}")
            part = min(length, PAGE_SIZE - offset)
            yield self.pages[number] + offset, part
            address, length = address + part, length - part

    def read(self, address: int, length: int) -> bytes:
        """The code as it is now. Raises KciError for what is not in it."""
        return b"".join(self._guest.read(gpa, size) for gpa, size in _joined(self._parts(address, length)))

    def patch(self, configuration: Configuration, address: int, data: bytes) -> Patch:
        """Store, if it is a step by which Linux patches a site. Raises PatchRefused."""
        patch = decide(self.rules, configuration, address, data, self.read)
        for gpa, size in self._parts(address, len(data)):
            self._guest.write(gpa, data[:size])
            data = data[size:]
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


def _joined(parts: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Neighbours together."""
    start = size = 0
    for gpa, more in parts:
        if size and start + size == gpa:
            size += more
            continue
        if size:
            yield start, size
        start, size = gpa, more
    if size:
        yield start, size


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
