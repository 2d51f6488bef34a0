# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI with a model of what is around it: pages with owners, VeilMon's answers, a kernel's virtual memory.

Nothing of it runs guest code, so a request takes no longer than the service itself does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from veil.formats.kci import FilePart, KernelCall, ModulePrepared
from veil.formats.kci_settings import ON, KciSettings
from veil.formats.kci_status import CodeWord, KciStatus, UserCall
from veil.formats.nested_faults import NestedFault
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Role
from veil.formats.service_domain import COPY_PAGES, MOVE_CHANGES, MOVE_PAGES, MOVE_RANGES, Change
from veil.formats.service_events import Decision, RefusedAccess, Registers, Verdict
from veil.formats.status import Status
from veil.monitor.page_rights import TRANSITIONS
from veil.services import KernelRequest, MonitorRefused, User
from veil.services.context import KernelPiece, ServiceContext
from veil.services.kci import KernelImage
from veil.services.kci.service import KciService
from veil.snp.errors import RmpViolation

__all__ = ["CODE_OWNERS", "ModelMachine"]

CODE_OWNERS = (Owner.KERNEL_CODE, Owner.MODULE_CODE)
_STORED = (*CODE_OWNERS, Owner.KERNEL_RODATA)
#: Where the model's kernel has the instruction that was refused, and what it stores.
_RIP, _SOURCE = 0xFFFF888000001000, 0xFFFF888000002000
_RSI, _RDI = 6, 7
_REFUSED_WRITE = int(NestedFault.WRITE | NestedFault.FINAL)
_T = TypeVar("_T")
_Work = Generator[Any, Any, _T]


class _Bytes:
    """Memory that the service alone has."""

    def __init__(self, data: bytearray) -> None:
        self.size = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return bytes(self._data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size
        self._data[offset : offset + len(data)] = data


class ModelMachine:
    """A machine with a kernel of this image; guest-physical memory that nothing was put into is not there."""

    def __init__(self, image: KernelImage, **settings: Any) -> None:
        self.pages: dict[int, bytearray] = {}
        self.owners: dict[int, Owner] = {}
        self.virtual: dict[int, bytes] = {}
        self.words: list[CodeWord] = []
        self.restricted: list[Owner] = []
        """Owners of pages on which VMPL 3 may execute nothing any more."""
        self.keeping = False
        """A restriction finds a page that keeps its rights: all others lose theirs."""
        self.coveted: set[int] = set()
        """Pages that the host takes away when the service comes to reach them."""
        self.taken: set[int] = set()
        """Those that it took."""
        for segment in image.segments:
            self.put(segment.physical, segment.data)
        chosen = KciSettings(**{"mode": ON, **settings})
        self._memory = bytearray(chosen.memory_size)
        copies = [
            KernelPiece(segment.virtual, segment.physical, _Bytes(bytearray(segment.data)))  # type: ignore[arg-type]
            for segment in image.segments
        ]
        self.service = KciService()
        self.service.context = ServiceContext(
            _Bytes(self._memory), lambda: 0, self, self,  # type: ignore[arg-type]
            lambda word, *, urgent=False: self.words.append(CodeWord.parse(word)), copies,
        )  # fmt: skip
        self.service.start(chosen.measured())
        self._rest: tuple[FilePart, list[int]] = FilePart(0, 0), []

    def close(self) -> None:
        """Machine and service know each other: without this their memory is free when Python next looks for cycles."""
        del self.service

    # Guest-physical memory

    def put(self, gpa: int, data: bytes) -> list[int]:
        """The kernel has this in its memory from a page's start on; the pages' GPAs."""
        made = []
        for at in range(0, max(len(data), 1), PAGE_SIZE):
            self.pages[gpa + at] = bytearray(data[at : at + PAGE_SIZE].ljust(PAGE_SIZE, b"\0"))
            self.owners.setdefault(gpa + at, Owner.KERNEL)
            made.append(gpa + at)
        return made

    def read(self, gpa: int, length: int) -> bytes:
        """As the service reads what it may."""
        first, offset = gpa - gpa % PAGE_SIZE, gpa % PAGE_SIZE
        pages = range(first, gpa + length, PAGE_SIZE)
        assert all(self.owners[page] is not Owner.KERNEL for page in pages), "VMPL 1 has no rights there"
        self._reach(pages, "read")
        return b"".join(self.pages[page] for page in pages)[offset : offset + length]

    def reaches(self, gpa: int) -> bool:
        """May VMPL 1 read a page?"""
        page = gpa - gpa % PAGE_SIZE
        return page not in self.taken and self.owners.get(page, Owner.NOBODY) in _STORED

    def write(self, gpa: int, data: bytes) -> None:
        """As the service writes code, and data of the policy's exceptions."""
        for at, byte in enumerate(data, gpa):
            page, offset = divmod(at, PAGE_SIZE)
            assert self.owners[page * PAGE_SIZE] in _STORED, "the service stores where nobody else can"
            self._reach([page * PAGE_SIZE], "write")
            self.pages[page * PAGE_SIZE][offset] = byte

    def _reach(self, pages: Iterable[int], access: str) -> None:
        for page in pages:
            if page in self.coveted:
                self.taken.add(page)
            if page in self.taken:
                raise RmpViolation(page, 1, access, "not the guest's page")

    # VeilMon, as services ask it

    def change(self, changes: Sequence[Change]) -> _Work[None]:
        """All pages or none."""
        assert 0 < len(changes) <= MOVE_CHANGES
        assert all(change.ranges for change in changes)
        assert sum(len(change.ranges) for change in changes) <= MOVE_RANGES
        moved: dict[int, Owner] = {}
        for change in changes:
            assert TRANSITIONS[change.source, change.target].services_may_ask
            for gpa, size in change.ranges:
                for page in range(gpa, gpa + size, PAGE_SIZE):
                    if page in self.taken:
                        raise MonitorRefused(Status.UNAVAILABLE, f"the page {page:#x} is not there")
                    if page in moved or self.owners.get(page) is not change.source:
                        raise MonitorRefused(Status.NOT_ALLOWED, f"a page is not one of {change.source.name}")
                    moved[page] = change.target
        assert len(moved) <= MOVE_PAGES
        self.owners.update(moved)
        return
        yield

    def copy_and_change(self, pages: Sequence[int], length: int, offset: int, changes: Sequence[Change]) -> _Work[None]:
        """One after the other."""
        yield from self.copy_in(pages, length, offset)
        yield from self.change(changes)

    def copy_in(self, pages: Sequence[int], length: int, offset: int) -> _Work[None]:
        """Pages of the kernel's alone."""
        assert offset + length <= len(self._memory)
        assert len(pages) == -(-length // PAGE_SIZE)
        assert COPY_PAGES
        for number, gpa in enumerate(pages):
            if self.owners.get(gpa) is not Owner.KERNEL:
                raise MonitorRefused(Status.BAD_REQUEST, f"the page {gpa:#x} is not the kernel's")
            at = number * PAGE_SIZE
            self._memory[offset + at : offset + min(at + PAGE_SIZE, length)] = self.pages[gpa][: length - at]
        return
        yield

    def restrict(self, owner: Owner, domain: object, keep: object) -> _Work[None]:
        """For good."""
        self.restricted.append(owner)
        if self.keeping:
            raise MonitorRefused(Status.UNAVAILABLE, "a page keeps its rights")
        return
        yield

    def read_virtual(self, vcpu: int, address: int, length: int) -> _Work[bytes]:
        """What `virtual` has there."""
        for start, data in self.virtual.items():
            if start <= address and address + length <= start + len(data):
                return data[address - start : address - start + length]
        raise MonitorRefused(Status.BAD_REQUEST, f"{address:#x} is not mapped")
        yield

    # What the kernel asks

    def ask(self, call: int, body: bytes = b"", pages: Sequence[int] = ()) -> bytes:
        """Raises Refused."""
        return run(self.service.kernel_request(KernelRequest(0, call, body, tuple(pages))))

    def send_file(self, file: bytes, gpa: int, piece: int = 1 << 20) -> None:
        """A module's, as the driver sends it: its last piece comes with the module's memory."""
        pages, at = self.put(gpa, file), 0
        while len(file) - at > piece:
            some = pages[at // PAGE_SIZE : (at + piece) // PAGE_SIZE]
            self.ask(KernelCall.MODULE_FILE, FilePart(len(file), at).pack(), some)
            at += piece
        self._rest = FilePart(len(file), at), pages[at // PAGE_SIZE :]

    def prepared(self, told: ModulePrepared, pages: Sequence[int]) -> int:
        """Of the file that was sent; the module's number."""
        part, rest = self._rest
        answer = self.ask(KernelCall.MODULE_PREPARED, part.pack() + told.pack(), [*rest, *pages])
        return int.from_bytes(answer, "little")

    def say_prepared(self, told: ModulePrepared, memory: Mapping[int, bytes], gpa: int) -> tuple[int, list[int]]:
        """The module's memory by type, in the order of types; its number and its pages."""
        pages = [page for kind in sorted(told.memory) for page in self.put(gpa + (kind << 24), memory[kind])]
        return self.prepared(told, pages), pages

    def store(
        self,
        gpa: int,
        data: bytes,
        *,
        vcpu: int = 0,
        info: int = _REFUSED_WRITE,
        cpl: int = 0,
        begins: int | None = None,
        owner: Owner | None = None,
    ) -> Verdict:
        """A REP MOVSB to a page that the RMP keeps from being written, as the hardware tells it. `begins`: where the
        store does, if the page is its second. `owner`: the page's when VeilMon asked, if it has another one by now."""
        code = b"\xf3\xa4"
        self.virtual = {_RIP: code.ljust(16, b"\x90"), _SOURCE: data}
        gprs = [0] * 16
        gprs[1], gprs[_RSI], gprs[_RDI] = (
            len(data),
            _SOURCE,
            0x7F0000000000 | (gpa if begins is None else begins) % PAGE_SIZE,
        )
        registers = Registers(tuple(gprs), _RIP, 0x202, 0x80050033, 0, 0x1000, 0x620, 0xD01, 0, 0, cpl)
        owner = self.owners.get(gpa - gpa % PAGE_SIZE, Owner.NOBODY) if owner is None else owner
        verdict: Any = self.service.access_refused(RefusedAccess(vcpu, 0, gpa, info, owner, registers))
        found: Verdict = run(verdict)
        return found

    def text_poke(self, gpa: int, content: bytes) -> bool:
        """A patch in its three steps; whether all of them were made."""
        steps = [(gpa, b"\xcc"), (gpa + 1, content[1:]), (gpa, content[:1])]
        return all(self.store(at, data).decision is Decision.RESUME for at, data in steps if data)

    def status(self) -> KciStatus:
        """For users."""
        return KciStatus.parse(bytes(run(self.service.answer_user(User(None, Role.READER), UserCall.STATUS, b""))))

    # What must hold

    def executable(self) -> set[int]:
        """Pages that VMPL 3 can execute as a supervisor after lock-down."""
        return {gpa for gpa, owner in self.owners.items() if owner in CODE_OWNERS}


def run(work: _T | _Work[_T]) -> _T:
    """What a handler comes to; the model answers at once."""
    if not isinstance(work, Generator):
        return work
    try:
        next(work)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("the model answers at once")
