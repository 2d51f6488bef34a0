# SPDX-License-Identifier: GPL-2.0-or-later
"""An enclave's page tables against a model, and as the processor's walk finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.services.enc.page_walk import NX, US, P, W, walk
from veil.formats.enclaves import ARENA, IDT, INFO, RUNTIME, THREADS, WINDOW, Prot
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import GuestMemory
from veil.services.enc.errors import EnclaveError, NoFrames
from veil.services.enc.page_tables import PageTables, tables_needed

RW, RX, R = Prot.R | Prot.W, Prot.R | Prot.X, Prot.R
TABLES = 0x100000


class Memory:
    """Guest memory of any size; pages hold noise before they are written."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def page(self, gpa: int) -> bytearray:
        return self.pages.setdefault(gpa // PAGE_SIZE, bytearray(b"\xa5" * PAGE_SIZE))

    def read(self, gpa: int, length: int) -> bytes:
        at = gpa % PAGE_SIZE
        assert at + length <= PAGE_SIZE
        return bytes(self.page(gpa)[at : at + length])

    def write(self, gpa: int, data: bytes) -> None:
        at = gpa % PAGE_SIZE
        assert at + len(data) <= PAGE_SIZE
        self.page(gpa)[at : at + len(data)] = data


def make(frames: int = 64) -> tuple[PageTables, Memory, list[int]]:
    memory, spare = Memory(), [TABLES + at * PAGE_SIZE for at in range(frames)]
    return PageTables(cast(GuestMemory, memory), spare), memory, spare


@pytest.mark.parametrize(
    ("prot", "bits"),
    [(R, P | US | NX), (RW, P | US | W | NX), (RX, P | US), (Prot(7), P | US | W)],
)
def test_rights(prot: Prot, bits: int) -> None:
    tables, memory, _ = make()
    tables.map(RUNTIME, [0x5000, 0x9000], prot)
    assert walk(memory, tables.root, RUNTIME) == (bits, 0x5000)
    assert walk(memory, tables.root, RUNTIME + PAGE_SIZE) == (bits, 0x9000)
    assert walk(memory, tables.root, RUNTIME + 2 * PAGE_SIZE) == (0, 0)
    assert tables.lookup(RUNTIME) == (0x5000, prot)


def test_of_the_processor_alone() -> None:
    tables, memory, _ = make()
    tables.map_system(IDT, 0x5000)
    assert walk(memory, tables.root, IDT) == (P | NX, 0x5000)
    changes: list[Callable[[], Any]] = [lambda: tables.unmap(IDT, 1), lambda: tables.protect(IDT, 1, RW)]
    for change in changes:
        with pytest.raises(EnclaveError):
            change()
    assert walk(memory, tables.root, IDT) == (P | NX, 0x5000)


def test_what_is_fixed_stays() -> None:
    tables, memory, _ = make()
    tables.map(INFO, [0x5000], R, fixed=True)
    tables.map(INFO + PAGE_SIZE, [0x6000], RW)
    changes: list[Callable[[], Any]] = [lambda: tables.unmap(INFO, 2), lambda: tables.protect(INFO, 2, RW)]
    for change in changes:
        with pytest.raises(EnclaveError):
            change()
    assert walk(memory, tables.root, INFO) == (P | US | NX, 0x5000)


def test_mapped_once() -> None:
    tables, memory, spare = make()
    tables.map(RUNTIME + 511 * PAGE_SIZE, [0x5000, 0x6000], R)
    before = len(spare)
    with pytest.raises(EnclaveError):
        tables.map(RUNTIME + 510 * PAGE_SIZE, [0x7000, 0x8000], R)
    assert walk(memory, tables.root, RUNTIME + 510 * PAGE_SIZE) == (0, 0), "all or nothing"
    assert len(spare) == before


def test_no_access_keeps_the_page() -> None:
    tables, memory, _ = make()
    tables.map(ARENA, [0x5000], RW)
    assert tables.protect(ARENA, 3, Prot.NONE) == 1
    assert walk(memory, tables.root, ARENA) == (0, 0)
    assert tables.lookup(ARENA) == (0x5000, Prot.NONE)
    assert tables.protect(ARENA, 1, RX) == 1
    assert walk(memory, tables.root, ARENA) == (P | US, 0x5000)
    assert tables.unmap(ARENA, 1 << 20) == [0x5000]
    assert tables.lookup(ARENA) is None


def test_a_page_is_held_until_it_may_be_reached() -> None:
    tables, memory, _ = make()
    tables.map(ARENA, [0x5000, 0x9000], RX)
    assert tables.hold(ARENA + 0x123)
    assert walk(memory, tables.root, ARENA) == (0, 0)
    assert walk(memory, tables.root, ARENA + PAGE_SIZE) == (P | US, 0x9000)
    assert not tables.is_away(ARENA)
    assert not tables.hold(ARENA)
    assert tables.reach(ARENA)
    assert walk(memory, tables.root, ARENA) == (P | US, 0x5000)
    assert not tables.reach(ARENA)


def test_what_cannot_be_held() -> None:
    tables, memory, _ = make()
    tables.map(ARENA, [0x5000], Prot.NONE)
    tables.map(RUNTIME, [0x9000], RX, fixed=True)
    for va in (ARENA, RUNTIME, ARENA + PAGE_SIZE, THREADS):
        assert not tables.hold(va)
        assert not tables.reach(va)
    assert walk(memory, tables.root, RUNTIME) == (P | US, 0x9000)
    assert walk(memory, tables.root, ARENA) == (0, 0)


def test_rights_that_change_while_a_page_is_held() -> None:
    tables, memory, _ = make()
    tables.map(ARENA, [0x5000, 0x6000, 0x7000], RX)
    for at in range(3):
        tables.hold(ARENA + at * PAGE_SIZE)
    tables.protect(ARENA, 1, Prot.NONE)
    assert not tables.reach(ARENA)
    tables.protect(ARENA + PAGE_SIZE, 1, RW)
    assert walk(memory, tables.root, ARENA + PAGE_SIZE) == (P | US | W | NX, 0x6000)
    # The kernel takes it, and gives it back.
    assert tables.send_away([ARENA + 2 * PAGE_SIZE]) == [0x7000]
    assert not tables.reach(ARENA + 2 * PAGE_SIZE)
    tables.bring_back([ARENA + 2 * PAGE_SIZE], [0x8000])
    assert walk(memory, tables.root, ARENA + 2 * PAGE_SIZE) == (P | US, 0x8000)


def test_no_pages_for_tables() -> None:
    tables, memory, spare = make(4)
    tables.map(RUNTIME, [0x5000], R)
    assert not spare
    with pytest.raises(NoFrames):
        tables.map(WINDOW, [0x6000], R)
    assert walk(memory, tables.root, WINDOW) == (0, 0)
    tables.map(RUNTIME + PAGE_SIZE, [0x6000], R)


def test_tables_are_made_of_pages_that_were_never_mapped() -> None:
    """A thread on another VCPU may still write through an old translation."""
    tables, _, spare = make()
    tables.map(ARENA, [0x5000], RW)
    tables.unmap(ARENA, 1)
    assert 0x5000 not in spare


def test_large_ranges_cost_what_is_there() -> None:
    tables, _, _ = make()
    tables.map(ARENA, [0x5000], RW)
    tables.map(RUNTIME, [0x6000], RW)
    assert tables.protect(ARENA, 1 << 30, R) == 1
    assert tables.unmap(PAGE_SIZE, RUNTIME // PAGE_SIZE) == [0x5000, 0x6000]


@pytest.mark.parametrize(
    "ranges",
    [
        [(ARENA, ARENA + PAGE_SIZE)],
        [(ARENA, ARENA + (5 << 20))],
        [(ARENA + (1 << 30) - PAGE_SIZE, ARENA + (1 << 30) + PAGE_SIZE)],
        [(0x400000, 0x401000), (0x500000, 0x600000), (0x600000, 0x601000), (THREADS, THREADS + 0x10000), (IDT, INFO)],
    ],
)
def test_how_many_tables_are_needed(ranges: list[tuple[int, int]]) -> None:
    tables, _, spare = make(600)
    for first, behind in ranges:
        tables.map(first, [0x5000] * ((behind - first) // PAGE_SIZE), R)
    assert 600 - len(spare) == tables_needed(ranges)


PLACES = st.sampled_from([ARENA, ARENA + 510 * PAGE_SIZE, ARENA + (1 << 30) - 2 * PAGE_SIZE, RUNTIME])
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["map", "unmap", "protect"]),
        PLACES,
        st.integers(0, 6),
        st.integers(1, 6),
        st.sampled_from([Prot.NONE, R, RW, RX]),
    ),
    max_size=20,
)


@settings(max_examples=examples(150))
@given(OPERATIONS)
def test_like_a_model(operations: list[tuple[str, int, int, int, Prot]]) -> None:
    tables, memory, _ = make()
    model: dict[int, tuple[int, Prot]] = {}
    frame = 0x100_0000
    for what, place, offset, count, prot in operations:
        va = place + offset * PAGE_SIZE
        pages = [va + at * PAGE_SIZE for at in range(count)]
        there = [page for page in pages if page in model]
        if what == "map":
            frames = [frame + at * PAGE_SIZE for at in range(count)]
            frame += count * PAGE_SIZE
            try:
                tables.map(va, frames, prot)
            except EnclaveError:
                assert there
                continue
            assert not there
            model |= {page: (gpa, prot) for page, gpa in zip(pages, frames, strict=True)}
        elif what == "unmap":
            assert tables.unmap(va, count) == [model.pop(page)[0] for page in there]
        else:
            assert tables.protect(va, count, prot) == len(there)
            model |= {page: (model[page][0], prot) for page in there}
    for page, (gpa, prot) in model.items():
        assert tables.lookup(page) == (gpa, prot)
        assert walk(memory, tables.root, page)[1] == (gpa if prot else 0)
    again = PageTables.load(cast(GuestMemory, memory), [], tables.dump())
    assert {page: again.lookup(page) for page in model} == dict(model)
