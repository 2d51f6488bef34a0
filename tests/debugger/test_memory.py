# SPDX-License-Identifier: GPL-2.0-or-later
"""A context's virtual memory: each way of paging, and what the RMP refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.bare_metal import FREE, SHARED, BareGuest, Permission
from veil.debugger.memory import ContextMemory, NotThere
from veil.formats.board import C_BIT
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import Cr0, Cr4, Efer
from veil.snp import RmpResult
from veil.snp.layouts import Vmsa

_TABLES = FREE + 0x10000
_PRESENT, _LARGE = 1, 0x80


@pytest.fixture
def guest() -> Iterator[BareGuest]:
    with BareGuest() as made:
        made.put(FREE, b"0123456789abcdef")
        made.permit(0, 3, pages=1024)
        yield made


def _long(guest: BareGuest, vmpl: int = 3, cr3: int = 0x1000) -> ContextMemory:
    vmsa = Vmsa(cr0=Cr0.PG, cr3=cr3, cr4=Cr4.PAE, efer=Efer.LMA)
    return ContextMemory(guest.view(vmpl), vmsa)


def test_long_mode(guest: BareGuest) -> None:
    memory = _long(guest)
    assert memory.read(FREE + 2, 4) == b"2345"
    assert memory.translate(FREE + 2) == (FREE + 2, True, 2 << 20)
    assert memory.translate(SHARED + FREE) == (FREE, False, 2 << 20)
    memory.write(FREE + PAGE_SIZE - 2, b"abcd")
    assert guest.view(0).read(FREE + PAGE_SIZE - 2, 4) == b"abcd"


@pytest.mark.parametrize("address", [8 << 20, 1 << 46, 1 << 47, 0xFFFF800000000000, (1 << 64) - 1])
def test_what_is_not_mapped(guest: BareGuest, address: int) -> None:
    memory = _long(guest)
    with pytest.raises(NotThere):
        memory.read(address, 1)
    with pytest.raises(NotThere):
        memory.write(address, b"x")


def test_shared_and_private_are_told_apart(guest: BareGuest) -> None:
    memory = _long(guest)
    with pytest.raises(NotThere):
        memory.read(SHARED + FREE, 1)
    assert guest.host.rmpupdate(FREE, assigned=False) == RmpResult.SUCCESS
    guest.host.write(FREE, b"the host's")
    assert memory.read(SHARED + FREE, 10) == b"the host's"
    with pytest.raises(NotThere):
        memory.read(FREE, 1)


def test_what_the_vmpl_may_not(guest: BareGuest) -> None:
    memory = _long(guest)
    guest.permit(FREE, 3, Permission.R)
    assert memory.read(FREE, 2) == b"01"
    with pytest.raises(NotThere, match="VMPL 3"):
        memory.write(FREE, b"x")
    guest.permit(FREE, 3, Permission(0))
    with pytest.raises(NotThere):
        memory.read(FREE, 1)
    assert _long(guest, 0).read(FREE, 2) == b"01"


def test_a_read_ends_where_memory_does_and_a_write_is_whole_or_none(guest: BareGuest) -> None:
    memory = _long(guest)
    guest.put(FREE + PAGE_SIZE - 4, b"last")
    guest.permit(FREE + PAGE_SIZE, 3, Permission(0))
    assert memory.read(FREE + PAGE_SIZE - 4, 100) == b"last"
    with pytest.raises(NotThere):
        memory.write(FREE + PAGE_SIZE - 4, b"longer")
    assert guest.view(0).read(FREE + PAGE_SIZE - 4, 4) == b"last"


def test_tables_that_the_vmpl_may_not_read(guest: BareGuest) -> None:
    guest.permit(0x1000, 3, Permission(0))
    with pytest.raises(NotThere, match="a page table"):
        _long(guest).read(FREE, 1)


def _write_entry(guest: BareGuest, gpa: int, value: int, size: int) -> None:
    guest.put(gpa, value.to_bytes(size, "little"))


def test_pae(guest: BareGuest) -> None:
    pointers, directory, table = _TABLES + 0x20, _TABLES + 0x1000, _TABLES + 0x2000
    _write_entry(guest, pointers + 8 * 3, directory | _PRESENT, 8)
    _write_entry(guest, directory + 8 * 511, table | _PRESENT, 8)
    _write_entry(guest, directory + 8 * 510, _PRESENT | _LARGE, 8)
    _write_entry(guest, table + 8 * 511, FREE | _PRESENT, 8)
    memory = ContextMemory(guest.view(3), Vmsa(cr0=Cr0.PG, cr3=pointers, cr4=Cr4.PAE))
    assert memory.read(0xFFFFF000, 4) == b"0123"
    assert memory.read(0xFFC00000 + FREE, 4) == b"0123"
    assert memory.read(0x1234_FFFF_F000, 4) == b"0123", "the upper half of an address is no part of it"


def test_two_levels(guest: BareGuest) -> None:
    directory, table = _TABLES, _TABLES + 0x1000
    _write_entry(guest, directory + 4 * 1023, table | _PRESENT, 4)
    _write_entry(guest, directory + 4 * 1, _PRESENT | _LARGE, 4)
    _write_entry(guest, table + 4 * 1, FREE | _PRESENT, 4)
    memory = ContextMemory(guest.view(3), Vmsa(cr0=Cr0.PG, cr3=directory))
    assert memory.read(0xFFC01000, 4) == b"0123"
    assert memory.read((4 << 20) + FREE, 4) == b"0123"


def test_without_paging(guest: BareGuest) -> None:
    memory = ContextMemory(guest.view(3), Vmsa())
    assert memory.read(FREE, 4) == b"0123"
    with pytest.raises(NotThere):
        memory.read(1 << 31, 4)


@given(
    st.lists(st.integers(0, (1 << 64) - 1), min_size=8, max_size=8), st.integers(0, (1 << 64) - 1), st.integers(0, 7)
)
def test_tables_of_nonsense_lead_nowhere(entries: list[int], address: int, mode: int) -> None:
    guest = _shared_guest()
    for index, entry in enumerate(entries):
        # Some lead back into themselves.
        value = entry if index % 2 else _TABLES | C_BIT | _PRESENT | entry & 0xFFF
        _write_entry(guest, _TABLES + 8 * (entry % 512), value, 8)
    cr4, efer = (Cr4.PAE if mode & 1 else 0), (Efer.LMA if mode & 2 else 0)
    memory = ContextMemory(guest.view(3), Vmsa(cr0=Cr0.PG if mode & 4 else 0, cr3=_TABLES, cr4=cr4, efer=efer))
    with contextlib.suppress(NotThere):
        memory.read(address, 100)
    with contextlib.suppress(NotThere):
        memory.write(address, b"x" * 10)


_kept: list[BareGuest] = []


def _shared_guest() -> BareGuest:
    if not _kept:
        _kept.append(BareGuest())
        _kept[0].permit(0, 3, pages=1024)
    return _kept[0]
