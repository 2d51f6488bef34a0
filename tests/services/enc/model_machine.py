# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC with a model of what is around it: who has each page, for which enclave; what VeilMon and host answer.

It knows nothing of how the service keeps its books. What it asserts is what an enclave is promised: a request about one
enclave touches pages of the kernel's and of that enclave alone, memory is read only after it is out of the kernel's
reach, and page tables lead to nothing that is not the enclave's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from veil.formats.board import C_BIT
from veil.formats.enclave_calls import EnclaveCall
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.enclaves import IDT, INFO, SYSTEM, WINDOW
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import MOVE_PAGES, MOVE_RANGES
from veil.formats.status import Status
from veil.services import KernelRequest, MonitorRefused
from veil.services.context import ServiceContext
from veil.services.enc.service import EncService
from veil.snp.layouts import Vmsa

__all__ = ["FRAMES", "Mapping", "ModelMachine"]

#: The guest's memory: pages of the kernel's at first.
FRAMES = range(0x100000, 0x100000 + 640 * PAGE_SIZE, PAGE_SIZE)
_PRESENT, _WRITE, _USER, _NO_EXECUTE = 1, 2, 4, 1 << 63
_ADDRESS = C_BIT - PAGE_SIZE
_MINE = (Owner.ENCLAVE, Owner.ENCLAVE_LEAVING)
_T = TypeVar("_T")
_Work = Generator[Any, Any, _T]


class Mapping(NamedTuple):
    """Of one page, as the processor finds it."""

    frame: int
    writable: bool
    user: bool
    executable: bool


class _NoMemory:
    size = 0


class ModelMachine:
    """`owners` has every page that is not the kernel's; `holders` the enclave of each."""

    def __init__(self) -> None:
        self.owners: dict[int, Owner] = {}
        self.holders: dict[int, int] = {}
        self.pages: dict[int, bytearray] = {}
        self.words: list[bytes] = []
        self.refusals = 0
        """So many of the next requests to VeilMon the host refuses."""
        self.reads: list[int] = []
        """Pages that the service read in the last request."""
        self._about: int | None = 0
        self._time = 0
        self.service = self._service()
        self.service.start(EncSettings(mode=ON, most=4).measured())

    def _service(self) -> EncService:
        made = EncService()
        made.context = ServiceContext(_NoMemory(), self._now, self, self, self.words.append)  # type: ignore[arg-type]
        return made

    def _now(self) -> int:
        self._time += 1
        return self._time

    def page(self, gpa: int) -> bytearray:
        """The page at an address, whoever looks."""
        return self.pages.setdefault(gpa, bytearray(b"\xa5" * PAGE_SIZE))

    def is_kernels(self, gpa: int) -> bool:
        """Could the kernel use it?"""
        return gpa in FRAMES and gpa not in self.owners

    # Guest memory, as the service reaches it

    def _reach(self, gpa: int, length: int) -> bytearray:
        first = gpa - gpa % PAGE_SIZE
        assert gpa + length <= first + PAGE_SIZE or length % PAGE_SIZE == 0
        about = self._about
        assert about is None or self.holders.get(first) == about, "the service touches another enclave's page"
        return self.page(first)

    def read(self, gpa: int, length: int) -> bytes:
        """`length` of several pages: whole ones."""
        found = bytearray()
        for at in range(gpa, gpa + length, PAGE_SIZE):
            page = self._reach(at, min(length, PAGE_SIZE))
            owner = self.owners[at - at % PAGE_SIZE]
            assert owner in (*_MINE, Owner.ENCLAVE_VMSA), "the service reads what the kernel can write"
            self.reads.append(at - at % PAGE_SIZE)
            found += page[at % PAGE_SIZE : at % PAGE_SIZE + min(length, PAGE_SIZE)]
        return bytes(found)

    def write(self, gpa: int, data: bytes) -> None:
        """Within a page."""
        assert gpa % PAGE_SIZE + len(data) <= PAGE_SIZE
        page = self._reach(gpa, len(data))
        assert self.owners[gpa - gpa % PAGE_SIZE] in _MINE, "the service writes what is not the enclave's"
        page[gpa % PAGE_SIZE : gpa % PAGE_SIZE + len(data)] = data

    # VeilMon, as services ask it

    def _host(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise MonitorRefused(Status.UNAVAILABLE, "the host does not do it")

    def move(self, ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> _Work[None]:
        """All pages or none; what the kernel gets is zero, but for windows and what the service has encrypted."""
        assert 0 < len(ranges) <= MOVE_RANGES
        pages = [gpa + at for gpa, size in ranges for at in range(0, size, PAGE_SIZE)]
        assert 0 < len(pages) <= MOVE_PAGES
        self._host()
        real = all(gpa in FRAMES and self.owners.get(gpa, Owner.KERNEL) is source for gpa in pages)
        if len(set(pages)) != len(pages) or not real:
            raise MonitorRefused(Status.NOT_ALLOWED, f"a page is not one of {source.name}")
        for gpa in pages:
            if source is Owner.KERNEL and self._about is not None:
                self.holders[gpa] = self._about
            assert self.holders[gpa] == self._about, "a request about one enclave moves another's pages"
            self.owners[gpa] = target
            if target is Owner.KERNEL:
                del self.owners[gpa], self.holders[gpa]
                if source not in (Owner.ENCLAVE_WINDOW, Owner.ENCLAVE_LEAVING):
                    self.pages[gpa] = bytearray(PAGE_SIZE)
        return
        yield

    def make_vmsa(self, gpa: int) -> _Work[None]:
        """Of an enclave's page."""
        self._host()
        assert (self.owners[gpa], self.holders[gpa]) == (Owner.ENCLAVE, self._about)
        self.owners[gpa] = Owner.ENCLAVE_VMSA
        return
        yield

    def drop_vmsa(self, gpa: int) -> _Work[None]:
        """It is ENCLAVE again."""
        self._host()
        assert (self.owners[gpa], self.holders[gpa]) == (Owner.ENCLAVE_VMSA, self._about)
        self.owners[gpa] = Owner.ENCLAVE
        self.pages[gpa] = bytearray(PAGE_SIZE)
        return
        yield

    def cpuid(self) -> _Work[bytes]:
        """One entry."""
        return bytes(0x30)
        yield

    def lasting_key(self) -> _Work[bytes]:
        """Of the measured image."""
        return bytes(32)
        yield

    # The kernel

    def ask(self, call: int, body: bytes = b"", pages: Sequence[int] = ()) -> bytes:
        """Raises Refused."""
        about = int.from_bytes(body[:4], "little") if call != EnclaveCall.CREATE else 0
        self._about, self.reads = about, []
        work = self.service.kernel_request(KernelRequest(0, call, body, tuple(pages)))
        return bytes(_run(work))

    def restart(self) -> None:
        """Over a snapshot."""
        saved, self.service = self.service.save(), self._service()
        self._about = None
        self.service.restore(EncSettings(mode=ON, most=4).measured(), saved)

    # The enclave and its processor

    def context(self, gpa: int) -> Vmsa:
        """A slot's registers, live."""
        return Vmsa.from_buffer(self.page(gpa))

    def mappings(self, context: int) -> dict[int, Mapping]:
        """Everything that this context's page tables lead to, by address. Asserts that they are sound."""
        number = self.holders[context]
        root = self.context(context).cr3
        tables: set[int] = set()
        found = dict(self._walk(root, 4, 0, _WRITE | _USER, number, tables))
        frames = [mapping.frame for mapping in found.values()]
        assert len(set(frames)) == len(frames), "a page is mapped twice"
        assert not tables.intersection(frames), "a page table is mapped"
        for va, mapping in found.items():
            self._check(va, mapping, number)
        return found

    def _walk(
        self, entry: int, level: int, base: int, rights: int, number: int, tables: set[int]
    ) -> Iterator[tuple[int, Mapping]]:
        assert entry & C_BIT, "memory that the host sees"
        table = entry & _ADDRESS
        assert (self.owners.get(table), self.holders.get(table)) == (Owner.ENCLAVE, number), "another's page table"
        assert table not in tables
        tables.add(table)
        entries = np.frombuffer(self.page(table), dtype="<u8")
        for index in np.flatnonzero(entries & _PRESENT).tolist():
            below = int(entries[index])
            va = base + (index << 12 + 9 * (level - 1))
            if level > 1:
                yield from self._walk(below, level - 1, va, rights & below, number, tables)
            else:
                assert below & C_BIT, "memory that the host sees"
                held = rights & below
                yield va, Mapping(
                    below & _ADDRESS, bool(held & _WRITE), bool(held & _USER), not below & _NO_EXECUTE
                )  # fmt: skip

    def _check(self, va: int, mapping: Mapping, number: int) -> None:
        owner = self.owners.get(mapping.frame)
        assert self.holders.get(mapping.frame) == number, f"{va:#x} leads to a page that is not the enclave's"
        if WINDOW <= va < WINDOW + (1 << 40):
            assert owner is Owner.ENCLAVE_WINDOW, "a private page in the window"
            assert not mapping.executable, "the kernel's code in the enclave"
        else:
            assert owner is Owner.ENCLAVE, f"{va:#x} leads to a page of {owner}"
        if SYSTEM <= va <= IDT:
            assert not mapping.user
            assert not mapping.writable, "the enclave writes its descriptors"
            assert not mapping.executable
        else:
            assert mapping.user, "supervisor's memory"
        if va == INFO:
            assert not mapping.writable


def _run(work: bytes | _Work[bytes]) -> bytes:
    """What a handler comes to; the model answers at once."""
    if not isinstance(work, Generator):
        return work
    try:
        next(work)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("the model answers at once")
