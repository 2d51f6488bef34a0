# SPDX-License-Identifier: GPL-2.0-or-later
"""An enclave's page tables (APM volume 2, 24593, 5.3): four levels, in pages that no table maps.

The rights of VMPL 2 are the same on all pages of all enclaves. What tells two enclaves apart is that each one's tables
name its own pages only, and that nobody but this module writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from veil.formats.board import C_BIT
from veil.formats.enclaves import Prot
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.page_table_entries import ACCESSED, ADDRESS, DIRTY, ENTRIES, NO_EXECUTE, PRESENT, USER, WRITABLE
from veil.services.enc.errors import EnclaveError, NoFrames

if TYPE_CHECKING:
    from veil.services.context import GuestMemory

__all__ = ["PageTables", "tables_needed"]

#: "Accessed" finds those that are not used (`cold`); "dirty" the processor need not set then.
_USED = ACCESSED | DIRTY
#: Of the bits that are left to software: the enclave may have the page changed. It need not be present.
_OWN = 1 << 9
#: The kernel has the page, encrypted; and once it is back it can be reached. REACHABLE alone: it is there, and held.
_AWAY, _REACHABLE = 1 << 10, 1 << 11
_TO_TABLE = C_BIT | PRESENT | WRITABLE | USER | _USED
_TABLE_ENTRY = struct.Struct("<Q")
_TABLE = struct.Struct(f"<{ENTRIES}Q")
#: Bits of a virtual page number that lie below the index of a table of this level: 1 has the pages, 4 is the root.
_BELOW = {1: 9, 2: 18, 3: 27}


def tables_needed(ranges: Sequence[tuple[int, int]]) -> int:
    """How many tables, the root among them, pages at these addresses (first, behind the last) need together."""
    needed = 1
    for shift in _BELOW.values():
        seen = -1
        for first, behind in sorted(ranges):
            start, last = first // PAGE_SIZE >> shift, (behind - 1) // PAGE_SIZE >> shift
            needed += last - max(start, seen + 1) + 1 if last > seen else 0
            seen = max(seen, last)
    return needed


class PageTables:
    """The tables of one enclave. `frames`: pages for more of them, never mapped before; they are taken from its end.

    A page that a thread could write through an old translation must not become a table: hence pages of their own.
    """

    def __init__(self, guest: GuestMemory, frames: list[int]) -> None:
        self._guest = guest
        self._frames = frames
        #: (level, virtual page number without the bits below) -> where the table is
        self._tables: dict[tuple[int, int], int] = {}
        self.root = self._take()

    def _take(self) -> int:
        if not self._frames:
            raise NoFrames("the enclave has no more pages for page tables")
        gpa = self._frames.pop()
        self._guest.write(gpa, bytes(PAGE_SIZE))
        return gpa

    # What the service maps

    def map(self, va: int, frames: Sequence[int], prot: Prot, *, fixed: bool = False) -> None:
        """Map pages in a row from `va` on. Raises EnclaveError if one is mapped already, NoFrames without tables.

        `fixed`: it stays as it is, whatever the enclave asks for.
        """
        self._require_free(va, len(frames))
        bits = _bits(prot) | (0 if fixed else _OWN)
        self._write(va, [frame | bits for frame in frames])

    def map_system(self, va: int, frame: int) -> None:
        """Map a page that the processor alone reads (descriptor tables): not the user's, read-only."""
        self._require_free(va, 1)
        self._write(va, [frame | C_BIT | PRESENT | _USED | NO_EXECUTE])

    # What the enclave has changed

    def unmap(self, va: int, pages: int) -> list[int]:
        """The pages that were mapped there, which no entry names any more; 0 for each that the kernel has.

        Raises EnclaveError for a fixed one.
        """
        found: list[int] = []
        for table, first, count in self._existing(va, pages):
            entries = self._read(table, first, count)
            self._refuse_fixed(entries)
            found += [entry & ADDRESS for entry in entries if entry]
            self._guest.write(table + first * _TABLE_ENTRY.size, bytes(count * _TABLE_ENTRY.size))
        return found

    def protect(self, va: int, pages: int, prot: Prot) -> int:
        """Change what is mapped there; returns how many pages. Raises EnclaveError for a fixed one."""
        bits, changed = _bits(prot) | _OWN, 0
        for table, first, count in self._existing(va, pages):
            entries = self._read(table, first, count)
            self._refuse_fixed(entries)
            new = [_changed(entry, bits) for entry in entries]
            changed += count - new.count(0)
            self._guest.write(table + first * _TABLE_ENTRY.size, struct.pack(f"<{count}Q", *new))
        return changed

    def lookup(self, va: int) -> tuple[int, Prot] | None:
        """(page, what the enclave may do there now), None if nothing is mapped."""
        for table, first, _ in self._existing(va, 1):
            (entry,) = self._read(table, first, 1)
            if entry:
                return entry & ADDRESS, _prot(entry)
        return None

    def readable(self, va: int, pages: int) -> list[int]:
        """The pages that are there. Raises EnclaveError if the enclave cannot read one of them now."""
        if va % PAGE_SIZE:
            raise EnclaveError(f"{va:#x} is no page's address")
        found: list[int] = []
        for table, first, count in self._existing(va, pages):
            entries = self._read(table, first, count)
            found += [entry & ADDRESS for entry in entries if entry & PRESENT and entry & USER]
        if len(found) != pages:
            raise EnclaveError(f"the enclave cannot read all of {pages} pages at {va:#x}")
        return found

    # What the kernel asks back

    def cold(self, hand: int, end: int, most: int) -> list[int]:
        """Addresses of at most `most` pages below `end` that are there and not fixed: the first ones from `hand` on,
        and round, that were not used since they were looked at last. One that was used is passed over once.
        """
        found: dict[int, None] = {}
        start = max(PAGE_SIZE, min(hand & -PAGE_SIZE, end))
        for va, behind in ((start, end), (PAGE_SIZE, start)) * 2:
            if va < behind:
                self._pass(va, behind, most, found)
        return list(found)

    def _pass(self, va: int, end: int, most: int, found: dict[int, None]) -> None:
        for table, first, count, base in self._places(va, (end - va) // PAGE_SIZE):
            if len(found) == most:
                return
            before = list(self._read(table, first, count))
            entries = before.copy()
            for at, entry in enumerate(before):
                if not entry & _OWN or entry & _AWAY:
                    continue
                if entry & ACCESSED:
                    entries[at] = entry & ~ACCESSED
                    continue
                found[base + at * PAGE_SIZE] = None
                if len(found) == most:
                    break
            if entries != before:
                self._guest.write(table + first * _TABLE_ENTRY.size, struct.pack(f"<{count}Q", *entries))

    def send_away(self, addresses: Sequence[int]) -> list[int]:
        """No access leads to these pages any more; returns them."""
        frames = []
        for table, indexes in self._by_table(addresses):
            entries = list(self._read(table, 0, ENTRIES))
            for at in indexes:
                entry = entries[at]
                assert entry & _OWN
                assert not entry & _AWAY
                frames.append(entry & ADDRESS)
                # Held: it stays.
                reachable = _REACHABLE if entry & PRESENT else 0
                entries[at] = entry & ~(ADDRESS | PRESENT) | _AWAY | reachable
            self._guest.write(table, _TABLE.pack(*entries))
        return frames

    def is_away(self, va: int) -> bool:
        """Does the kernel have the page that is mapped there?"""
        return any(self._read(table, first, 1)[0] & _AWAY for table, first, _, _ in self._places(va & -PAGE_SIZE, 1))

    def bring_back(self, addresses: Sequence[int], frames: Sequence[int]) -> None:
        """The pages are there again, in other places, with the rights that they had or were given since."""
        left = iter(frames)
        for table, indexes in self._by_table(addresses):
            entries = list(self._read(table, 0, ENTRIES))
            for at in indexes:
                entry = entries[at]
                assert entry & _AWAY
                present = PRESENT if entry & _REACHABLE else 0
                entries[at] = entry & ~(_AWAY | _REACHABLE) | _USED | next(left) | present
            self._guest.write(table, _TABLE.pack(*entries))

    # What interrupts the program

    def hold(self, va: int) -> bool:
        """The next access to the page is a fault, until `reach`. False: it is not there, or fixed."""
        for table, first, _, _ in self._places(va & -PAGE_SIZE, 1):
            (entry,) = self._read(table, first, 1)
            if entry & _OWN and entry & PRESENT:
                held = entry & ~PRESENT | _REACHABLE
                self._guest.write(table + first * _TABLE_ENTRY.size, _TABLE_ENTRY.pack(held))
                return True
        return False

    def reach(self, va: int) -> bool:
        """A page that is held can be reached again, with the rights that it had. False: it was not held."""
        for table, first, _, _ in self._places(va & -PAGE_SIZE, 1):
            (entry,) = self._read(table, first, 1)
            if entry & _REACHABLE and not entry & _AWAY:
                free = entry & ~_REACHABLE | PRESENT
                self._guest.write(table + first * _TABLE_ENTRY.size, _TABLE_ENTRY.pack(free))
                return True
        return False

    # Tables

    def _pieces(self, va: int, pages: int) -> Iterator[tuple[int, int, int]]:
        """(table's key, first entry, entries) for each table of the first level that a range touches."""
        page, end = va // PAGE_SIZE, va // PAGE_SIZE + pages
        while page < end:
            first = page % ENTRIES
            count = min(ENTRIES - first, end - page)
            yield page >> _BELOW[1], first, count
            page += count

    def _by_table(self, addresses: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
        """(table, indexes) for addresses that are mapped, in their order."""
        for key, some in groupby((va // PAGE_SIZE for va in addresses), lambda page: page >> _BELOW[1]):
            yield self._tables[1, key], [page % ENTRIES for page in some]

    def _existing(self, va: int, pages: int) -> Iterator[tuple[int, int, int]]:
        """(table, first entry, entries) for those that are there."""
        return ((table, first, count) for table, first, count, _ in self._places(va, pages))

    def _places(self, va: int, pages: int) -> Iterator[tuple[int, int, int, int]]:
        """The same with the first address; a large range costs no more than there are tables."""
        first, last = va // PAGE_SIZE >> _BELOW[1], (va // PAGE_SIZE + pages - 1) >> _BELOW[1]
        if first == last:
            keys = [first] if (1, first) in self._tables else []
        elif last - first < len(self._tables):
            keys = [key for key in range(first, last + 1) if (1, key) in self._tables]
        else:
            keys = sorted(key for level, key in self._tables if level == 1 and first <= key <= last)
        start, end = va // PAGE_SIZE, va // PAGE_SIZE + pages
        for key in keys:
            base = key << _BELOW[1]
            low, high = max(start, base), min(end, base + ENTRIES)
            yield self._tables[1, key], low - base, high - low, low * PAGE_SIZE

    def _read(self, table: int, first: int, count: int) -> tuple[int, ...]:
        return struct.unpack(
            f"<{count}Q", self._guest.read(table + first * _TABLE_ENTRY.size, count * _TABLE_ENTRY.size)
        )

    def _refuse_fixed(self, entries: Sequence[int]) -> None:
        if any(entry and not entry & _OWN for entry in entries):
            raise EnclaveError("a page of the enclave that is not its own to change")

    def _require_free(self, va: int, pages: int) -> None:
        for table, first, count in self._existing(va, pages):
            if any(self._read(table, first, count)):
                raise EnclaveError(f"something is mapped already from {va:#x} on")
        missing = {
            (level, page >> shift)
            for page in (va // PAGE_SIZE + at for at in (*range(0, pages, ENTRIES), pages - 1))
            for level, shift in _BELOW.items()
        } - self._tables.keys()
        if len(missing) > len(self._frames):
            raise NoFrames(f"the enclave has {len(self._frames)} pages left for page tables, and needs {len(missing)}")

    def _write(self, va: int, entries: Sequence[int]) -> None:
        at = 0
        for key, first, count in self._pieces(va, len(entries)):
            table = self._table(1, key)
            self._guest.write(table + first * _TABLE_ENTRY.size, struct.pack(f"<{count}Q", *entries[at : at + count]))
            at += count

    def _table(self, level: int, key: int) -> int:
        if level > len(_BELOW):
            return self.root
        table = self._tables.get((level, key))
        if table is None:
            above = self._table(level + 1, key // ENTRIES)
            table = self._tables[level, key] = self._take()
            self._guest.write(above + key % ENTRIES * _TABLE_ENTRY.size, _TABLE_ENTRY.pack(table | _TO_TABLE))
        return table

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """Where the tables are; what is in them is guest memory."""
        return {"root": self.root, "tables": [[*key, gpa] for key, gpa in self._tables.items()]}

    @classmethod
    def load(cls, guest: GuestMemory, frames: list[int], state: dict[str, Any]) -> PageTables:
        """Take back what `dump` gave."""
        made = cls.__new__(cls)
        made._guest, made._frames, made.root = guest, frames, state["root"]
        made._tables = {(level, key): gpa for level, key, gpa in state["tables"]}
        return made


def _changed(entry: int, bits: int) -> int:
    """An entry with other rights."""
    if not entry:
        return 0
    if entry & _AWAY:
        return bits & ~PRESENT | _AWAY | (_REACHABLE if bits & PRESENT else 0)
    return entry & ADDRESS | bits


def _bits(prot: Prot) -> int:
    if not prot:
        return C_BIT | _USED | NO_EXECUTE
    write = WRITABLE if prot & Prot.W else 0
    return C_BIT | PRESENT | USER | _USED | write | (0 if prot & Prot.X else NO_EXECUTE)


def _prot(entry: int) -> Prot:
    if not entry & PRESENT or not entry & USER:
        return Prot.NONE
    return Prot.R | (Prot.W if entry & WRITABLE else Prot.NONE) | (Prot.NONE if entry & NO_EXECUTE else Prot.X)
