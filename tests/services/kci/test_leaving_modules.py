# SPDX-License-Identifier: GPL-2.0-or-later
"""A module's pages leave in several requests, one of which the host makes fail: what is the kernel's memory again by
then is code of nobody, and its rules decide about nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.kci.modules.made_module import KERNEL, MEMORY, MODULE_ADDRESS, PERCPU, A, MadeModule, X
from tests.services.kci.small_kernel import ENDBR, SmallKernel
from veil.formats.kci import FilePart, MemoryType, ModulePrepared
from veil.formats.kci_settings import ON, KciSettings
from veil.formats.kci_status import CodeEvent, CodeWord
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import MOVE_PAGES, Change
from veil.formats.status import Refused, Status
from veil.monitor.page_rights import TRANSITIONS
from veil.services.context import MonitorRefused
from veil.services.kci import KernelCode, guarded_code
from veil.services.kci.errors import KciError, NotGivenBack
from veil.services.kci.explain_code import Configuration
from veil.services.kci.ledger import Ledger
from veil.services.kci.module_calls import ModuleCalls
from veil.services.kci.modules import ExportedSymbols, Keyring, ModulePolicy, ModuleSpace, prepare
from veil.services.kci.service import KciService
from veil.services.kci.surroundings import Surroundings
from veil.services.program import MAX_ASKS
from veil.snp.errors import RmpViolation

FILE = MadeModule().with_section(".init.text", data=ENDBR + b"\xc3", flags=A | X).build()
SPACE = ModuleSpace(range(MODULE_ADDRESS, MODULE_ADDRESS + (1 << 24)), range(PERCPU, PERCPU + 4096))
CONFIGURATION = Configuration("ret", "retpoline", "kept", False, {})
#: Not neighbours, so that each is a range of its own.
PAGES = {kind: PAGE_SIZE * (100 + 2 * kind) for kind in sorted(MEMORY)}
CODE_OWNERS = (Owner.KERNEL_CODE, Owner.MODULE_CODE)


def _run(work: Generator[Any, Any, Any]) -> Any:
    try:
        next(work)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("nobody is asked here")


class _Text:
    """The kernel's, as far as modules need it."""

    def __init__(self) -> None:
        self.rules = self
        self.near = KernelCode(SmallKernel().image()).near

    def admit(self, near: Surroundings) -> None:
        self.near = near


class _Kernel:
    """A module's memory, and VeilMon's book."""

    def __init__(self) -> None:
        policy = ModulePolicy(Keyring([]), frozenset({hashlib.sha256(FILE).digest()}))
        prepared = prepare(policy.admit(FILE), MEMORY, PERCPU, ExportedSymbols(KERNEL), SPACE)
        self.content = {gpa: prepared.images.get(kind, bytes(PAGE_SIZE)) for kind, gpa in PAGES.items()}
        self.owners: dict[int, Owner] = {}
        self.taken: set[int] = set()
        """Pages that the host has taken away."""
        guest = SimpleNamespace(read=self._read_guest)
        context: Any = SimpleNamespace(memory=self, monitor=self, guest=guest)
        measured: Any = SimpleNamespace(policy=policy, module_space=SPACE, exported=lambda: ExportedSymbols(KERNEL))
        self.words: list[CodeWord] = []
        ledger = Ledger(lambda word, *, urgent=False: self.words.append(CodeWord.parse(word)))
        self.calls = ModuleCalls(context, KciSettings(mode=ON), measured, ledger)
        self.text: Any = _Text()

    def read(self, offset: int, length: int) -> bytes:
        """The service's memory."""
        return FILE[offset : offset + length]

    def _read_guest(self, gpa: int, length: int) -> bytes:
        if gpa in self.taken:
            raise RmpViolation(gpa, 1, "read", "not the guest's page")
        return self.content[gpa][:length]

    def copy_and_change(
        self, pages: list[int], length: int, offset: int, changes: list[Change]
    ) -> Generator[Any, Any, None]:
        yield from self.change(changes)

    def change(self, changes: list[Change]) -> Generator[Any, Any, None]:
        for change in changes:
            if (change.source, change.target) not in TRANSITIONS:
                raise MonitorRefused(Status.NOT_ALLOWED, f"{change.source.name} to {change.target.name}")
            for gpa, _ in change.ranges:
                if gpa in self.taken or self.owners.get(gpa, Owner.KERNEL) is not change.source:
                    raise MonitorRefused(Status.UNAVAILABLE, f"the page {gpa:#x}")
        for change in changes:
            self.owners.update(dict.fromkeys((gpa for gpa, _ in change.ranges), change.target))
        return
        yield

    def load(self) -> int:
        part = FilePart(len(FILE), 0)
        pages = [*(PAGE_SIZE * number for number in range(part.pages)), *PAGES.values()]
        return int(_run(self.calls.take(part, ModulePrepared(PERCPU, MEMORY), pages, CONFIGURATION, self.text)))

    def ruled(self) -> set[int]:
        """Pages about which some code's rules decide."""
        return {gpa for gpa in PAGES.values() for code in self.calls.codes() if code.address_of(gpa) is not None}

    def owned(self, *owners: Owner) -> set[int]:
        return {gpa for gpa, owner in self.owners.items() if owner in owners}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    monkeypatch.setattr(guarded_code, "MOVE_RANGES", 1)
    return _Kernel()


@pytest.mark.parametrize("kind", [MemoryType.RODATA, MemoryType.INIT_TEXT])
def test_no_rules_for_what_left(kernel: _Kernel, kind: MemoryType) -> None:
    number = kernel.load()
    kernel.taken = {PAGES[kind]}
    with pytest.raises(MonitorRefused):
        _run(kernel.calls.gone(number))
    assert set(kernel.owners) - kernel.owned(Owner.KERNEL) == {PAGES[kind]}
    assert kernel.ruled() == set()


@pytest.mark.parametrize("kind", [MemoryType.INIT_TEXT, MemoryType.INIT_DATA])
def test_what_comes_to_where_init_memory_was_does_not_get_its_name(kernel: _Kernel, kind: MemoryType) -> None:
    """The log must not say of another module's code that it is this one's."""
    number = kernel.load()
    module = kernel.calls.modules[number]
    assert str(module.describe(MEMORY[kind].address)).startswith("made:")
    _run(kernel.calls.live(number))
    assert module.describe(MEMORY[kind].address) is None
    assert str(module.describe(MEMORY[MemoryType.TEXT].address)).startswith("made:")


def test_nor_after_a_snapshot(kernel: _Kernel) -> None:
    number = kernel.load()
    kernel.taken = {PAGES[MemoryType.RODATA]}
    with pytest.raises(MonitorRefused):
        _run(kernel.calls.gone(number))
    again = _Kernel()
    again.owners = kernel.owners
    again.calls.load(json.loads(json.dumps(kernel.calls.dump())))
    again.calls.rebuild(again.text)
    assert again.ruled() <= again.owned(*CODE_OWNERS)
    _run(again.calls.gone(number))
    assert again.owned(Owner.KERNEL) == set(again.owners)


def test_it_goes_when_it_is_asked_again(kernel: _Kernel) -> None:
    number = kernel.load()
    kernel.taken = {PAGES[MemoryType.RODATA]}
    with pytest.raises(MonitorRefused):
        _run(kernel.calls.gone(number))
    kernel.taken = set()
    _run(kernel.calls.gone(number))
    assert kernel.owned(Owner.KERNEL) == set(kernel.owners)
    assert not kernel.calls.modules


def test_a_module_that_is_refused_half_way(kernel: _Kernel) -> None:
    """Its text could be executed, its init text not yet: both are the kernel's memory as before."""
    change = kernel.change

    def refuse(changes: list[Change]) -> Generator[Any, Any, None]:
        if changes[0].target is Owner.MODULE_CODE and changes[0].ranges[0][0] == PAGES[MemoryType.INIT_TEXT]:
            raise MonitorRefused(Status.UNAVAILABLE, "the host does not let VeilMon change pages")
        yield from change(changes)

    kernel.change = refuse  # type: ignore[method-assign]
    with pytest.raises(Exception, match="cannot be taken"):
        kernel.load()
    assert kernel.owned(Owner.KERNEL) == set(kernel.owners)


@pytest.mark.parametrize("kind", [MemoryType.RODATA, MemoryType.TEXT, MemoryType.INIT_TEXT])
def test_the_host_takes_a_page_away_while_it_is_read(kernel: _Kernel, kind: MemoryType) -> None:
    """Refused, and the log says so: like a module of which a byte is another."""
    change = kernel.change

    def take(changes: list[Change]) -> Generator[Any, Any, None]:
        yield from change(changes)
        if len(kernel.owned(Owner.KERNEL_RODATA)) == 3:
            # All that is looked at.
            kernel.taken = {PAGES[kind]}

    kernel.change = take  # type: ignore[method-assign]
    with pytest.raises(NotGivenBack, match=f"; and then the page {PAGES[kind]:#x}"):
        kernel.load()
    assert [word.event for word in kernel.words] == [CodeEvent.MODULE_REFUSED]
    assert "the host took memory away" in kernel.words[0].words
    assert kernel.ruled() == kernel.owned(*CODE_OWNERS) == set()
    assert kernel.owned(Owner.KERNEL_RODATA) == {PAGES[kind]}, "all others are the kernel's again"


@pytest.mark.parametrize(("stuck", "asked"), [({0}, 4), ({0, 1}, 2), ({1, 3}, 4)])
def test_a_module_that_cannot_go_keeps_no_other_one(
    kernel: _Kernel, monkeypatch: pytest.MonkeyPatch, stuck: set[int], asked: int
) -> None:
    """But for those after the second such one: what one request may ask VeilMon has an end."""
    kernel.calls.modules = dict.fromkeys(range(4), kernel.calls.modules[kernel.load()])
    numbers: list[int] = []

    def gone(number: int) -> Generator[Any, Any, None]:
        numbers.append(number)
        if number in stuck:
            raise MonitorRefused(Status.UNAVAILABLE, f"module {number}")
        return
        yield

    monkeypatch.setattr(kernel.calls, "gone", gone)
    with pytest.raises(MonitorRefused, match=f"module {min(stuck)}"):
        _run(kernel.calls.release())
    assert numbers == list(range(asked))


@pytest.mark.parametrize(
    ("error", "status"), [(NotGivenBack("kept"), Status.UNAVAILABLE), (KciError("refused"), Status.NOT_ALLOWED)]
)
def test_the_driver_learns_that_pages_are_not_its_own_again(error: KciError, status: Status) -> None:
    def work() -> Generator[Any, Any, None]:
        raise error
        yield

    with pytest.raises(Refused) as caught:
        _run(KciService()._checked(work()))
    assert caught.value.status is status


# Pages that the host keeps from VeilMon

_FIRST = 0x100 * PAGE_SIZE


class _Book:
    """VeilMon, of which the host keeps some pages."""

    def __init__(self, kept: set[int]) -> None:
        self.kept = kept
        self.moved: list[int] = []
        self.asked = 0

    def change(self, changes: list[Change]) -> Generator[Any, Any, None]:
        self.asked += 1
        pages = [
            page for change in changes for gpa, size in change.ranges for page in range(gpa, gpa + size, PAGE_SIZE)
        ]
        assert len(pages) <= MOVE_PAGES
        if found := self.kept.intersection(pages):
            raise MonitorRefused(Status.UNAVAILABLE, f"the page {min(found):#x}")
        self.moved += pages
        return
        yield


def _named(changes: Iterable[Change]) -> list[int]:
    return [page for change in changes for gpa, size in change.ranges for page in range(gpa, gpa + size, PAGE_SIZE)]


def _pages(*numbers: int) -> list[int]:
    return [_FIRST + number * PAGE_SIZE for number in numbers]


@given(
    numbers=st.sets(st.integers(0, 300), max_size=200),
    others=st.sets(st.integers(400, 500), min_size=1, max_size=50),
    which=st.sets(st.integers(0, 249), max_size=guarded_code._MAX_REFUSED - 1),
)
def test_all_but_what_is_kept_is_given_back_once(numbers: set[int], others: set[int], which: set[int]) -> None:
    code, data = _pages(*sorted(numbers)), _pages(*sorted(others))
    every = [*code, *data]
    kept = {every[number % len(every)] for number in which}
    book: Any = _Book(kept)
    changes: list[Change] = []
    moves = (code, Owner.MODULE_CODE, Owner.KERNEL), (data, Owner.KERNEL_RODATA, Owner.KERNEL)
    work = guarded_code.leave_pages(book, *moves, moved=changes.append)
    if kept:
        with pytest.raises(MonitorRefused, match=f"the page {min(kept):#x}"):
            _run(work)
    else:
        _run(work)
    assert sorted(book.moved) == sorted(set(every) - kept)
    for pages, source, target in moves:
        told = [change for change in changes if change.source is source]
        assert {change.target for change in told} <= {target}
        assert sorted(_named(told)) == sorted(set(pages) - kept)


@pytest.mark.parametrize("kept", [range(MOVE_PAGES), range(3, MOVE_PAGES, MOVE_PAGES // guarded_code._MAX_REFUSED)])
@pytest.mark.parametrize("gap", [0, 1])
def test_a_host_that_keeps_many_does_not_keep_the_services_busy(kept: range, gap: int) -> None:
    """In one range, and in as many as a request may name."""
    pages = _pages(*(number + gap * (number // 8) for number in range(MOVE_PAGES)))
    book: Any = _Book({pages[number] for number in kept})
    with pytest.raises(MonitorRefused):
        _run(guarded_code.leave_pages(book, (pages, Owner.MODULE_CODE, Owner.KERNEL)))
    assert not book.kept.intersection(book.moved)
    assert book.asked <= 30 * guarded_code._MAX_REFUSED < MAX_ASKS // 5


def test_what_was_moved_is_moved_back_though_the_host_keeps_a_page_of_it() -> None:
    """The first request was done when the second is refused, and by then the host has a page of the first."""
    book: Any = _Book(set())
    change = book.change

    def refuse(changes: list[Change]) -> Generator[Any, Any, None]:
        yield from change(changes)
        book.kept = set(_pages(5, MOVE_PAGES))

    book.change = refuse
    pages = _pages(*range(MOVE_PAGES + 1))
    with pytest.raises(MonitorRefused, match=f"the page {pages[-1]:#x}"):
        _run(guarded_code.move_pages(book, (pages, Owner.KERNEL, Owner.KERNEL_CODE)))
    assert sorted(book.moved[MOVE_PAGES:]) == sorted(set(pages[:-1]) - {pages[5]})
