# SPDX-License-Identifier: GPL-2.0-or-later
"""From ELF segments to pages: what each page holds, and what may be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from veil.formats.enclaves import Prot, Record, RecordKind
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.elf import ElfProgram
from veil.guest.enclaves.config import ConfigArea
from veil.guest.errors import GuestImageError

__all__ = ["EnclavePages"]


@dataclass
class _Page:
    prot: Prot
    data: bytearray | None
    """None: zero."""


@dataclass
class EnclavePages:
    """Pages by address, until all are there."""

    _pages: dict[int, _Page] = field(default_factory=dict)

    def add_program(self, program: ElfProgram, base: int, name: str) -> None:
        """All segments of a program, `base` further on. Raises GuestImageError where pages are taken."""
        mine: set[int] = set()
        for segment in program.segments:
            prot = Prot.R
            prot |= Prot.W if segment.writable else Prot.NONE
            prot |= Prot.X if segment.executable else Prot.NONE
            start = base + segment.address
            first, last = start // PAGE_SIZE, (start + segment.size - 1) // PAGE_SIZE
            for number in range(first, last + 1):
                page = self._pages.get(number)
                # The last page of a segment can be the first of the next one's: then both rights are needed.
                if page is not None and number not in mine:
                    raise GuestImageError(f"{name}: an enclave has something else at {number * PAGE_SIZE:#x}")
                self._pages[number] = _Page(prot | (page.prot if page else Prot.NONE), page.data if page else None)
                mine.add(number)
            self._write(start, segment.data)

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
            if page.data is None and any(part):
                page.data = bytearray(PAGE_SIZE)
            if page.data is not None:
                page.data[offset : offset + len(part)] = part
            at += len(part)

    def records(self) -> tuple[list[Record], bytes]:
        """The layout's records in ascending order, and the content of those that have some, one after the other."""
        records, contents = [], []
        for numbers in self._runs():
            first = self._pages[numbers[0]]
            va = numbers[0] * PAGE_SIZE
            if first.data is None:
                records.append(Record(RecordKind.ZERO, first.prot, va, len(numbers)))
                continue
            content = b"".join(bytes(self._pages[number].data or b"") for number in numbers)
            records.append(Record.content(first.prot, va, content))
            contents.append(content)
        return records, b"".join(contents)

    def areas(self) -> list[ConfigArea]:
        """All pages that are there, as areas of equal rights."""
        found: list[ConfigArea] = []
        for numbers in self._runs():
            start, end = numbers[0] * PAGE_SIZE, (numbers[-1] + 1) * PAGE_SIZE
            prot = int(self._pages[numbers[0]].prot)
            if found and found[-1].end == start and found[-1].prot == prot:
                found[-1] = ConfigArea(found[-1].start, end, prot)
            else:
                found.append(ConfigArea(start, end, prot))
        return found

    def _runs(self) -> Iterator[list[int]]:
        """Numbers of pages that lie together and are alike."""
        run: list[int] = []
        for number in sorted(self._pages):
            if run:
                before, page = self._pages[run[-1]], self._pages[number]
                alike = before.prot == page.prot and (before.data is None) == (page.data is None)
                if number != run[-1] + 1 or not alike:
                    yield run
                    run = []
            run.append(number)
        if run:
            yield run
