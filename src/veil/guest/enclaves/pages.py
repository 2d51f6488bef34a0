# SPDX-License-Identifier: GPL-2.0-or-later
"""From ELF segments to pages: what each page holds, and what may be done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from veil.formats.enclaves import (
    ARENA,
    MAX_PAGES,
    MAX_RECORDS,
    RUNTIME,
    THREADS,
    TOP,
    WINDOW,
    Prot,
    Record,
    RecordKind,
    fixed_areas,
)
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.sizes import format_size
from veil.guest.elf import ElfProgram
from veil.guest.enclaves.config import ConfigArea
from veil.guest.errors import GuestImageError

__all__ = ["EnclavePages"]


@dataclass(slots=True)
class _Page:
    prot: Prot
    data: bytearray | None
    """None: zero."""
    is_file: bool = False
    """Whether it has something of a file, zeros perhaps; the rest is zero because nobody has said what is there."""


@dataclass
class EnclavePages:
    """Pages by address, until all are there."""

    _pages: dict[int, _Page] = field(default_factory=dict)

    def add_program(self, program: ElfProgram, base: int, name: str) -> None:
        """All segments of a program, `base` further on. Raises GuestImageError where they cannot be."""
        self._check_room(program, base, name)
        self._add(program, base, name)

    def add_runtime(self, runtime: ElfProgram) -> None:
        """Its segments, where it is linked for."""
        self._add(runtime, 0, "the runtime")

    def _add(self, program: ElfProgram, base: int, name: str) -> None:
        mine: set[int] = set()
        for segment in program.segments:
            prot = Prot.R
            prot |= Prot.W if segment.writable else Prot.NONE
            prot |= Prot.X if segment.executable else Prot.NONE
            start = base + segment.address
            for number in _numbers(start, segment.size):
                page = self._pages.get(number)
                # The last page of a segment can be the first of the next one's: then both rights are needed.
                if page is not None and number not in mine:
                    raise GuestImageError(f"{name}: an enclave has something else at {number * PAGE_SIZE:#x}")
                if page is None:
                    self._pages[number] = _Page(prot, None)
                else:
                    page.prot |= prot
                mine.add(number)
            self._write(start, segment.data)

    def _check_room(self, program: ElfProgram, base: int, name: str) -> None:
        """Before a page is made of each, for a header can say anything."""
        # The first page stays free: a null pointer is a fault.
        taken = [(0, PAGE_SIZE), *fixed_areas(), (ARENA, WINDOW), (RUNTIME, THREADS)]
        count = len(self._pages)
        for segment in program.segments:
            start, end = base + segment.address, base + segment.address + segment.size
            if end > TOP or any(start < behind and first < end for first, behind in taken):
                raise GuestImageError(
                    f"{name}: its segment at {start:#x} of {segment.size} bytes is where an enclave has something else"
                )
            count += len(_numbers(start, segment.size))
        if count > MAX_PAGES:
            size, most = f"{count * PAGE_SIZE / (1 << 30):.1f} GiB", format_size(MAX_PAGES * PAGE_SIZE)
            raise GuestImageError(f"{name}: its segments take {size}, and an enclave begins with {most} at most")

    def add_content(self, address: int, data: bytes, prot: Prot) -> None:
        """Whole pages."""
        for at in range(0, len(data), PAGE_SIZE):
            self._pages[(address + at) // PAGE_SIZE] = _Page(prot, bytearray(data[at : at + PAGE_SIZE]))

    def add_zeros(self, address: int, size: int) -> None:
        """Whole pages, to read and write."""
        for at in range(0, size, PAGE_SIZE):
            self._pages[(address + at) // PAGE_SIZE] = _Page(Prot.R | Prot.W, None)

    def _write(self, address: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, offset = divmod(address + at, PAGE_SIZE)
            part = data[at : at + PAGE_SIZE - offset]
            page = self._pages[number]
            page.is_file = True
            if page.data is None and any(part):
                page.data = bytearray(PAGE_SIZE)
            if page.data is not None:
                page.data[offset : offset + len(part)] = part
            at += len(part)

    def records(self) -> tuple[list[Record], bytes]:
        """The layout's records in ascending order, and the content of those that have some, one after the other.

        Raises GuestImageError if there are too many.
        """
        runs = list(self._runs(lambda page: page.data is None))
        if len(runs) > MAX_RECORDS:
            # Files with holes here and there: their zeros are content, too.
            runs = list(self._runs(lambda page: page.data is None and not page.is_file))
        if len(runs) > MAX_RECORDS:
            raise GuestImageError(
                f"the program's segments are {len(runs)} pieces with rights of their own: {MAX_RECORDS} at most"
            )
        records, contents = [], []
        for numbers in runs:
            pages = [self._pages[number] for number in numbers]
            va = numbers[0] * PAGE_SIZE
            if all(page.data is None for page in pages):
                records.append(Record(RecordKind.ZERO, pages[0].prot, va, len(numbers)))
                continue
            content = b"".join(bytes(page.data or PAGE_SIZE) for page in pages)
            records.append(Record.content(pages[0].prot, va, content))
            contents.append(content)
        return records, b"".join(contents)

    def areas(self) -> list[ConfigArea]:
        """All pages that are there, as areas of equal rights."""
        found: list[ConfigArea] = []
        for numbers in self._runs(lambda page: False):
            start, end = numbers[0] * PAGE_SIZE, (numbers[-1] + 1) * PAGE_SIZE
            prot = int(self._pages[numbers[0]].prot)
            if found and found[-1].end == start and found[-1].prot == prot:
                found[-1] = ConfigArea(found[-1].start, end, prot)
            else:
                found.append(ConfigArea(start, end, prot))
        return found

    def _runs(self, is_zero: Callable[[_Page], bool]) -> Iterator[list[int]]:
        """Numbers of pages that lie together and are alike."""
        run: list[int] = []
        for number in sorted(self._pages):
            if run:
                before, page = self._pages[run[-1]], self._pages[number]
                alike = before.prot == page.prot and is_zero(before) == is_zero(page)
                if number != run[-1] + 1 or not alike:
                    yield run
                    run = []
            run.append(number)
        if run:
            yield run


def _numbers(start: int, size: int) -> range:
    return range(start // PAGE_SIZE, (start + size - 1) // PAGE_SIZE + 1)
