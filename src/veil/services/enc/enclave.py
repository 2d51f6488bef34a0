# SPDX-License-Identifier: GPL-2.0-or-later
"""One enclave: how it is made, page by page, what it has, how all of it goes back.

Every byte that the kernel gives is checked after it is out of the kernel's reach: content is moved, then measured, then
mapped. A request that fails leaves the enclave as it was, or unusable; then it can only be destroyed.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from veil.formats.enclave_calls import KEPT_PAGES
from veil.formats.enclave_pages import InfoPage
from veil.formats.enclaves import (
    IDT,
    INFO,
    SYSTEM,
    SYSTEM_STRIDE,
    THREAD_AREAS,
    THREAD_PAGES,
    THREAD_STRIDE,
    THREADS,
    WINDOW,
    WINDOW_STRIDE,
    Layout,
    Prot,
    RecordKind,
    ThreadPart,
)
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import MonitorRefused
from veil.services.enc.errors import EnclaveError, NeedsPages, NoFrames
from veil.services.enc.initial_state import descriptor_page, first_context, interrupt_table
from veil.services.enc.page_moves import PagesStuck, give, runs, take
from veil.services.enc.page_tables import PageTables, tables_needed
from veil.services.enc.paging import AwayPages
from veil.snp.errors import RmpViolation
from veil.snp.layouts import Vmsa

if TYPE_CHECKING:
    from veil.services.context import Asking, GuestMemory, ServiceContext

__all__ = ["Enclave", "State", "pages_needed"]

#: Tables for what the pool's pages may be mapped at, beyond one for each 2 MiB of them.
_MORE_TABLES = 16
#: The pool grows by so many pages at least, if it may: each time costs requests.
_GROWTH = 256


class State(enum.Enum):
    """Of an enclave."""

    MAKING = "making"
    READY = "ready"
    UNUSABLE = "unusable"
    """It is not what its layout says, or could not be made to its end."""


def _is_taken(context: ServiceContext, page: int) -> bool:
    """Has the host taken a context's page away? Then it is no VMSA any more, and nobody runs it."""
    try:
        context.guest.read(page + Vmsa.cr2.offset, 8)
    except RmpViolation:
        return True
    return False


def _ranges(layout: Layout) -> list[tuple[int, int]]:
    """(first address, address behind the last) of all that is mapped when it starts."""
    slots = range(layout.slots)
    return [
        *((record.va, record.end) for record in layout.records),
        *((WINDOW + at * WINDOW_STRIDE, WINDOW + at * WINDOW_STRIDE + layout.window_pages * PAGE_SIZE) for at in slots),
        (THREADS, THREADS + layout.slots * THREAD_STRIDE),
        *((SYSTEM + at * SYSTEM_STRIDE, SYSTEM + at * SYSTEM_STRIDE + PAGE_SIZE) for at in slots),
        (IDT, IDT + PAGE_SIZE),
        (INFO, INFO + PAGE_SIZE),
    ]


def pages_needed(layout: Layout) -> int:
    """How many pages an enclave of this layout needs beside its content and its windows, before it runs."""
    for_pool = 2 * -(-layout.pool_pages // 512) + _MORE_TABLES
    slots = layout.slots * (THREAD_PAGES + 2)  # GDT and TSS, VMSA
    return tables_needed(_ranges(layout)) + for_pool + slots + 2 + layout.zero_pages


class Enclave:
    """Everything that VeilS-ENC knows of one."""

    def __init__(self, number: int, layout: Layout) -> None:
        self.number = number
        self.layout = layout
        self.measurement = layout.measurement
        self.state = State.MAKING
        self.owned: dict[int, None] = {}
        """Its pages (ENCLAVE), in the order in which they came."""
        self.spare: list[int] = []
        """Of these: those that hold nothing, and were never mapped. Page tables are made of them."""
        self.pool: list[int] = []
        """Those that the runtime may have mapped."""
        self.granted = 0
        """How many came for the pool; what the runtime has mapped of them counts too."""
        self.windows: dict[int, list[int]] = {}
        """Slot -> pages (ENCLAVE_WINDOW)."""
        self.contexts: list[int] = []
        """Slot -> page of its VMSA (ENCLAVE_VMSA; one of `owned`)."""
        self.mailboxes: list[int] = []
        """Slot -> page of its mailbox."""
        self.away = AwayPages()
        """What the kernel asked back."""
        self._hand = 0
        """Where the search for pages that may go goes on."""
        self._leaving: list[tuple[int, int]] = []
        """(address, page) of those that are encrypted, and that VeilMon has not given to the kernel yet."""
        self._lost: list[int] = []
        """Pages that the host took away while they left. They are nobody's, and must not pass for the kernel's."""
        self._kept: set[int] = set()
        """Of `owned`: those that the host did not let go when the enclave ended."""
        self._tables: PageTables | None = None
        self._record = 0
        self._page = 0
        self._hash = hashlib.sha384()
        self._skip_zero_records()

    # Making one

    def donate(self, context: ServiceContext, pages: Sequence[int]) -> Asking[None]:
        """Pages whose content does not matter; once it is made, for the pool."""
        if self.state is State.READY:
            yield from self._grow(context, pages)
            return
        self._require(State.MAKING)
        if len(self.owned) + len(pages) > pages_needed(self.layout) + self.content_pages():
            raise EnclaveError("an enclave gets no more pages than it needs")
        yield from self._take(context, pages)
        self.spare += pages

    def _grow(self, context: ServiceContext, pages: Sequence[int]) -> Asking[None]:
        if self.granted + len(pages) > self.layout.pool_pages:
            raise EnclaveError(f"the pool has {self.layout.pool_pages} pages at most")
        yield from self._take(context, pages)
        self.granted += len(pages)
        self.pool += pages

    def _take(self, context: ServiceContext, pages: Sequence[int]) -> Asking[None]:
        """They are the enclave's from here on, whatever becomes of them. Raises MonitorRefused."""
        try:
            yield from take(context.monitor, pages, Owner.ENCLAVE)
        except PagesStuck as stuck:
            # Of no use, and nobody else's: they go back at its end.
            self.owned |= dict.fromkeys(stuck.pages)
            if self.state is State.MAKING:
                self.state = State.UNUSABLE
            raise
        self.owned |= dict.fromkeys(pages)

    def require_pool(self, pages: int) -> None:
        """There must be so many that are free. Raises NeedsPages if the kernel may give them, NoFrames if not."""
        missing, left = pages - len(self.pool), self.layout.pool_pages - self.granted
        if missing <= 0:
            return
        if missing > left:
            raise NoFrames(f"the pool has {len(self.pool) + left} pages left, not {pages}")
        raise NeedsPages(min(left, max(missing, _GROWTH)))

    def add_window(self, context: ServiceContext, slot: int, pages: Sequence[int]) -> Asking[None]:
        """A slot's window, which the kernel goes on reading and writing."""
        self._require(State.MAKING)
        if slot >= self.layout.slots or slot in self.windows or len(pages) != self.layout.window_pages:
            raise EnclaveError(f"slot {slot} needs no window of {len(pages)} pages")
        try:
            yield from take(context.monitor, pages, Owner.ENCLAVE_WINDOW)
        except PagesStuck as stuck:
            self.windows[slot], self.state = stuck.pages, State.UNUSABLE
            raise
        self.windows[slot] = list(pages)
        try:
            self._make_tables(context.guest).map(WINDOW + slot * WINDOW_STRIDE, pages, Prot.R | Prot.W, fixed=True)
        except Exception:
            self.state = State.UNUSABLE
            raise

    def add_content(self, context: ServiceContext, record: int, page: int, pages: Sequence[int]) -> Asking[None]:
        """The next pages of content; the last ones of a record show whether it is what the layout says."""
        self._require(State.MAKING)
        if (record, page) != (self._record, self._page) or record >= len(self.layout.records):
            raise EnclaveError(f"record {self._record}, page {self._page} comes next, not record {record}, page {page}")
        expected = self.layout.records[record]
        if not 0 < len(pages) <= expected.pages - page:
            raise EnclaveError(f"record {record} has {expected.pages} pages")
        yield from self._take(context, pages)
        self._page += len(pages)
        try:
            for gpa, size in runs(pages):
                self._hash.update(context.guest.read(gpa, size))
            self._make_tables(context.guest).map(expected.va + page * PAGE_SIZE, pages, expected.prot)
            if self._page == expected.pages:
                self._finish_record(expected.digest)
        except Exception:
            self.state = State.UNUSABLE
            raise

    def _finish_record(self, digest: bytes) -> None:
        if self._hash.digest() != digest:
            raise EnclaveError(f"the content of record {self._record} is not what the layout says")
        self._record, self._page, self._hash = self._record + 1, 0, hashlib.sha384()
        self._skip_zero_records()

    def _skip_zero_records(self) -> None:
        records = self.layout.records
        while self._record < len(records) and records[self._record].kind is RecordKind.ZERO:
            self._record += 1

    def finish(self, context: ServiceContext, tsc_khz: int, cpuid: bytes) -> Asking[None]:
        """All is there: the rest is made, and each slot becomes a context."""
        self._require(State.MAKING)
        layout = self.layout
        if self._record < len(layout.records):
            raise EnclaveError(f"record {self._record} of {len(layout.records)} is not there yet")
        missing = [slot for slot in range(layout.slots) if slot not in self.windows]
        if missing:
            raise EnclaveError(f"slot {missing[0]} has no window")
        if len(self.owned) < pages_needed(layout) + self.content_pages():
            raise EnclaveError("the enclave does not have all of its pages yet")
        self.state = State.UNUSABLE  # until all of it is done
        self._map_rest(context.guest, InfoPage.of(layout, self.number, tsc_khz, cpuid))
        for slot in range(layout.slots):
            yield from self._make_context(context, slot)
        self.state = State.READY

    def _map_rest(self, guest: GuestMemory, info: InfoPage) -> None:
        layout, tables = self.layout, self._make_tables(guest)
        for record in layout.records:
            if record.kind is RecordKind.ZERO:
                tables.map(record.va, [self._zeroed(guest) for _ in range(record.pages)], record.prot)
        for slot in range(layout.slots):
            for first, behind in THREAD_AREAS:
                area = [self._zeroed(guest) for _ in range(first, behind, PAGE_SIZE)]
                tables.map(THREADS + slot * THREAD_STRIDE + first, area, Prot.R | Prot.W, fixed=True)
                if behind > ThreadPart.MAILBOX:
                    self.mailboxes.append(area[(ThreadPart.MAILBOX - first) // PAGE_SIZE])
            tables.map_system(SYSTEM + slot * SYSTEM_STRIDE, self._filled(guest, descriptor_page(slot)))
        tables.map_system(IDT, self._filled(guest, interrupt_table(layout.vectors)))
        tables.map(INFO, [self._filled(guest, bytes(info))], Prot.R, fixed=True)

    def _make_context(self, context: ServiceContext, slot: int) -> Asking[None]:
        root = self._make_tables(context.guest).root
        page = self._filled(context.guest, first_context(slot, self.layout.entry, root))
        yield from context.monitor.make_vmsa(page)
        self.contexts.append(page)

    # Paging

    def reclaim(self, context: ServiceContext, most: int) -> Asking[list[tuple[int, int]]]:
        """(address, page) of pages that the kernel has from here on, with what they held, encrypted. Raises
        MonitorRefused.

        First no thread reaches them any more, by its tables and by the RMP; then they are encrypted; then given. What
        is the runtime's own stays: it could not handle the fault.
        """
        self._require(State.READY)
        if not self._leaving:
            yield from self._send_away(context, self.tables.cold(self._hand, WINDOW, most))
        # If the host refuses now they are given the next time.
        yield from self._give_leaving(context)
        given, self._leaving = self._leaving, []
        return given

    def _send_away(self, context: ServiceContext, found: Sequence[int]) -> Asking[None]:
        if not found:
            return
        frames = self.tables.send_away(found)
        try:
            yield from context.monitor.move(list(runs(sorted(frames))), Owner.ENCLAVE, Owner.ENCLAVE_LEAVING)
        except MonitorRefused:
            self.tables.bring_back(found, frames)
            raise
        self._hand = found[-1] + PAGE_SIZE
        for va, frame in zip(found, frames, strict=True):
            del self.owned[frame]
            # What the host took away in the middle is lost, and cannot come back.
            try:
                context.guest.write(frame, self.away.seal(va, context.guest.read(frame, PAGE_SIZE)))
                self._leaving.append((va, frame))
            except RmpViolation:
                self._lost.append(frame)

    def _give_leaving(self, context: ServiceContext) -> Asking[None]:
        pages = sorted(frame for _, frame in self._leaving)
        if pages:
            yield from context.monitor.move(list(runs(pages)), Owner.ENCLAVE_LEAVING, Owner.KERNEL)

    def take_back(self, context: ServiceContext, addresses: Sequence[int], pages: Sequence[int]) -> Asking[None]:
        """Pages that come back. Raises EnclaveError if one does not hold what was given last for its address."""
        self._require(State.READY)
        yield from self._take(context, pages)
        places = list(zip(addresses, pages, strict=True))
        try:
            contents = [self._content_of(context, *place) for place in places]
        except EnclaveError:
            with suppress(MonitorRefused):
                yield from context.monitor.move(list(runs(sorted(pages))), Owner.ENCLAVE, Owner.KERNEL)
                for page in pages:
                    del self.owned[page]
            raise
        missing = [(*place, content) for place, content in zip(places, contents, strict=True) if content is not None]
        for _, page, content in missing:
            context.guest.write(page, content)
        # Not before all are there: what the host took in between is asked for again.
        self.tables.bring_back([va for va, _, _ in missing], [page for _, page, _ in missing])
        for va, _, _ in missing:
            self.away.forget(va)
        spare = [page for (_, page), content in zip(places, contents, strict=True) if content is None]
        self.pool += spare
        self.granted += len(spare)

    def _content_of(self, context: ServiceContext, va: int, page: int) -> bytes | None:
        """What is to be in a page that comes back; None if nothing is missing there any more."""
        return self.away.open(va, context.guest.read(page, PAGE_SIZE)) if self.tables.is_away(va) else None

    def unmap(self, va: int, pages: int) -> int:
        """The runtime has no use for what is mapped there; returns how many pages that were."""
        frames = self.tables.unmap(va, pages)
        self.away.forget(va, pages)
        # The kernel has as many as there are zeros: it gives others, or returns them.
        self.pool += filter(None, frames)
        self.granted -= frames.count(0)
        return len(frames)

    # Signals

    def interrupt(self, context: ServiceContext, slot: int) -> None:
        """The next instruction of a slot that is in the program is a fault, by which its runtime comes to look for
        signals: the page at RIP is held until the runtime asks.

        No register changes, so a kernel that asks for it at any time gets no more than a fault that is no fault.
        """
        self._require(State.READY)
        rip = int.from_bytes(context.guest.read(self.contexts[slot] + Vmsa.rip.offset, 8), "little")
        if PAGE_SIZE <= rip < WINDOW:
            self.tables.hold(rip)

    # Its end

    def release(self, context: ServiceContext, most: int) -> Asking[tuple[int, list[int]]]:
        """Give back `most` pages at most. Returns how many are still to be given, and those that the host keeps, which
        are tried again when no other is left.

        Raises MonitorRefused while a slot runs, or if the host keeps more than KEPT_PAGES.
        """
        self.state = State.UNUSABLE
        while self.contexts:
            try:
                yield from context.monitor.drop_vmsa(self.contexts[-1])
            except MonitorRefused:
                if not _is_taken(context, self.contexts[-1]):
                    raise
            self.contexts.pop()
        kept: list[int] = []
        for pages in self.windows.values():
            room = KEPT_PAGES - len(kept)
            kept += yield from give(context.monitor, pages, len(pages), Owner.ENCLAVE_WINDOW, room)
        leaving = [*self._lost, *(page for _, page in self._leaving)]
        try:
            room = KEPT_PAGES - len(kept)
            kept += yield from give(context.monitor, leaving, len(leaving), Owner.ENCLAVE_LEAVING, room)
        finally:
            self._leaving = [(va, page) for va, page in self._leaving if page in leaving]
            self._lost = [page for page in self._lost if page in leaving]
        before = self._kept & self.owned.keys() if self._kept < self.owned.keys() else set()
        waiting = [page for page in self.owned if page not in before]
        try:
            room = KEPT_PAGES - len(kept) - len(before)
            refused = yield from give(context.monitor, waiting, most, Owner.ENCLAVE, room)
        finally:
            still = before | set(waiting)
            self.owned = {page: None for page in self.owned if page in still}
        self._kept = before | set(refused)
        return len(self.owned) - len(self._kept), [*kept, *sorted(self._kept)]

    # Parts

    def _require(self, state: State) -> None:
        if self.state is not state:
            raise EnclaveError(f"enclave {self.number} is {self.state.value}")

    def content_pages(self) -> int:
        """That came until now."""
        records = self.layout.records[: self._record]
        return self._page + sum(record.pages for record in records if record.kind is RecordKind.CONTENT)

    @property
    def tables(self) -> PageTables:
        """There are some as soon as anything is mapped."""
        assert self._tables is not None
        return self._tables

    def _make_tables(self, guest: GuestMemory) -> PageTables:
        if self._tables is None:
            self._tables = PageTables(guest, self.spare)
        return self._tables

    def _zeroed(self, guest: GuestMemory) -> int:
        return self._filled(guest, bytes(PAGE_SIZE))

    def _filled(self, guest: GuestMemory, content: bytes) -> int:
        if not self.spare:
            raise EnclaveError(f"enclave {self.number} has no more pages")
        page = self.spare.pop()
        guest.write(page, content)
        return page

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "number": self.number, "layout": self.layout.pack().hex(), "state": self.state.value,
            "owned": list(self.owned),
            "spare": self.spare, "pool": self.pool, "granted": self.granted,
            "windows": list(self.windows.items()), "contexts": self.contexts,
            "mailboxes": self.mailboxes, "progress": [self._record, self._page],
            "away": self.away.dump(), "hand": self._hand, "leaving": self._leaving,
            "lost": self._lost, "kept": sorted(self._kept),
            "tables": None if self._tables is None else self._tables.dump(),
        }  # fmt: skip

    @classmethod
    def load(cls, guest: GuestMemory, state: dict[str, Any]) -> Enclave:
        """Take back what `dump` gave."""
        made = cls(state["number"], Layout.parse(bytes.fromhex(state["layout"])))
        made.state = State(state["state"])
        made.owned, made.spare, made.pool = dict.fromkeys(state["owned"]), state["spare"], state["pool"]
        made.granted = state["granted"]
        made.windows = dict(state["windows"])
        made.contexts, made.mailboxes = state["contexts"], state["mailboxes"]
        made.away = AwayPages.load(state["away"])
        made._hand, made._leaving = state["hand"], [(va, page) for va, page in state["leaving"]]
        made._lost, made._kept = state["lost"], set(state["kept"])
        made._record, made._page = state["progress"]
        if state["tables"] is not None:
            made._tables = PageTables.load(guest, made.spare, state["tables"])
        if made._page and made.state is State.MAKING:
            # The hash of a record that is not complete is made again.
            va = made.layout.records[made._record].va
            for at in range(made._page):
                found = made.tables.lookup(va + at * PAGE_SIZE)
                assert found is not None
                made._hash.update(guest.read(found[0], PAGE_SIZE))
        return made
