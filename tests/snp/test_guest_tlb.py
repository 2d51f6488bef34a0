# SPDX-License-Identifier: GPL-2.0-or-later
"""What a change of the address space leaves of the translations before it (APM volume 2, 5.5 "Global Pages")."""

from __future__ import annotations

import pytest

from tests.machine_code import assemble
from tests.small_guest import CODE, FREE, PAGE, VMSA, SmallGuest
from veil.snp import ExitCode

_OTHER = FREE + PAGE
_PML4, _PDPT, _PD, _PT = 0x1000, 0x2000, 0x3000, 0x4000
_ENTRY = _PT + 8 * (FREE // PAGE)
_HIGH = 0xFFFF_8000_0000_0000
_LINK = 7 | 1 << 51
_GLOBAL, _LARGE = 0x100, 0x80
_RIP = 0x178

_RELOAD = "mov rax, cr3\nmov cr3, rax"
_INVLPG = "invlpg [rdi]"
# All of the guest's, by ASID 0 and with global ones, and TLBSYNC.
_INVLPGB = "mov eax, 0xC\nxor ecx, ecx\nxor edx, edx\n.byte 0x0f, 0x01, 0xfe, 0x0f, 0x01, 0xff"
_TOGGLE_PGE = "mov rax, cr4\nxor rax, 0x80\nmov cr4, rax\nxor rax, 0x80\nmov cr4, rax"
_VISITS = {"read": "movzx ecx, byte ptr [rdi + 1]", "call": "call rdi"}


def _remapped(guest: SmallGuest, *, where: int, visit: str, entry_bits: int, flush: str, pge: bool) -> tuple[int, int]:
    """Visit a page, map another one in its place, flush, visit it again: which page was it each time?"""
    for number, page in enumerate((FREE, _OTHER), 1):
        guest.top.write(page, assemble(f"mov ecx, {number}\nret", FREE))
    guest.top.write_u64(_PML4 + 8 * 256, _PDPT | _LINK)
    guest.top.write_u64(_ENTRY, FREE | _LINK | entry_bits)
    guest.put(
        ("mov rax, cr4\nor rax, 0x80\nmov cr4, rax\n" if pge else "")
        + f"mov rdi, {where + FREE}\n{_VISITS[visit]}\nmov esi, ecx\n"
        f"mov rbx, {_OTHER | _LINK | entry_bits}\nmov [{_ENTRY}], rbx\n{flush}\n{_VISITS[visit]}\nhlt"
    )
    assert guest.run() == ExitCode.HLT
    assert guest.trap().times == 0
    vmsa = guest.vmsa()
    return vmsa.rsi, vmsa.rcx


@pytest.mark.parametrize("visit", _VISITS)
@pytest.mark.parametrize("where", [0, _HIGH], ids=["low", "high"])
@pytest.mark.parametrize(
    ("entry_bits", "pge", "flush", "second"),
    [
        (0, True, _RELOAD, 2),
        (_GLOBAL, False, _RELOAD, 2),
        (_GLOBAL, True, _RELOAD, 1),
        (_GLOBAL, True, _INVLPG, 2),
        (_GLOBAL, True, _TOGGLE_PGE, 2),
        (_GLOBAL, True, _INVLPGB, 2),
        (_GLOBAL, True, f"{_RELOAD}\n{_INVLPG}\n{_RELOAD}", 2),
        (_GLOBAL, True, f"{_RELOAD}\n{_TOGGLE_PGE}", 2),
    ],
    ids=["local", "no-PGE", "global", "invlpg", "toggled", "invlpgb", "reloaded-invlpg", "reloaded-toggled"],
)
def test_mov_to_cr3_keeps_global_pages_alone(
    visit: str, where: int, entry_bits: int, pge: bool, flush: str, second: int
) -> None:
    with SmallGuest() as guest:
        seen = _remapped(guest, where=where, visit=visit, entry_bits=entry_bits, flush=flush, pge=pge)
        assert seen == (1, second)


@pytest.mark.parametrize("where", [0, _HIGH], ids=["low", "high"])
def test_a_global_page_that_the_monitor_closes_is_closed_after_mov_to_cr3(where: int) -> None:
    with SmallGuest() as guest:
        assert _remapped(guest, where=where, visit="call", entry_bits=_GLOBAL, flush=_RELOAD, pge=True) == (1, 1)
        guest.permit(FREE, 0)
        guest.permit(_OTHER, 0)
        guest.put(f"{_RELOAD}\nmov rdi, {where + FREE}\ncall rdi\nhlt")
        guest.top.write_u64(VMSA + _RIP, CODE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_2 & ~0xFFF == _OTHER


@pytest.mark.parametrize("visit", _VISITS)
@pytest.mark.parametrize("pages", [0, 10, 500, 700])
@pytest.mark.parametrize("alias", [0, _HIGH], ids=["seen", "displaced"])
def test_mov_to_cr3_drops_local_pages_however_many(visit: str, pages: int, alias: int) -> None:
    # `alias`: the same page in the upper half of the address space, which has the same place in the soft TLB.
    with SmallGuest() as guest:
        for number, page in enumerate((FREE, _OTHER), 1):
            guest.top.write(page, assemble(f"mov ecx, {number}\nret", FREE))
        guest.top.write_u64(_PML4 + 8 * 256, _PDPT | _LINK)
        touch = (
            f"mov ebx, {pages}\nmov rax, {FREE + 2 * PAGE}\nmore: mov edx, [rax]\nadd rax, {PAGE}\ndec ebx\njnz more\n"
        )
        guest.put(
            "mov rax, cr4\nor rax, 0x80\nmov cr4, rax\nmov rbp, 3\nturn:\n"
            f"{touch if pages else ''}mov rdi, {FREE}\n{_VISITS[visit]}\nmov esi, ecx\n"
            f"mov rax, {alias + FREE}\nmov edx, [rax]\n"
            f"mov rbx, {_OTHER | _LINK}\nmov [{_ENTRY}], rbx\n{_RELOAD}\n{_VISITS[visit]}\n"
            f"shl r8, 8\nlea r8, [r8 + rsi * 8]\nadd r8, rcx\n"
            f"mov rbx, {FREE | _LINK}\nmov [{_ENTRY}], rbx\n{_RELOAD}\ndec rbp\njnz turn\nhlt"
        )
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert guest.vmsa().r8 == 0x0A0A0A


def test_programs_at_the_same_address_in_two_address_spaces() -> None:
    # Two top tables, with each a page of its own at the same address, and a global page above for what switches.
    second_pml4, second_pdpt, second_pd, second_pt = (FREE + page * PAGE for page in range(16, 20))
    switch = FREE + 4 * PAGE
    with SmallGuest() as guest:
        write = guest.top.write_u64
        for page in range(512):
            write(second_pt + 8 * page, guest.top.read_u64(_PT + 8 * page))
        write(second_pt + 8 * (FREE // PAGE), _OTHER | _LINK)
        for table, below in ((second_pml4, second_pdpt), (second_pdpt, second_pd), (second_pd, second_pt)):
            write(table, below | _LINK)
        write(_PML4 + 8 * 256, _PDPT | _LINK)
        write(second_pml4 + 8 * 256, _PDPT | _LINK)
        write(_PT + 8 * (switch // PAGE), switch | _LINK | _GLOBAL)
        for number, page in enumerate((FREE, _OTHER)):
            guest.top.write(page, assemble(f"lea ebx, [ebx * 2 + {number}]\nret", FREE))
        guest.put(
            f"mov rsi, {_PML4}\nmov rdi, {second_pml4}\nmov r8, {FREE}\nmov ecx, 20\nmov ebx, 1\n"
            "again:\ncall r8\nmov cr3, rdi\ncall r8\nmov cr3, rsi\nloop again\nhlt",
            switch,
        )
        high = _HIGH + switch
        guest.put(f"mov rax, cr4\nor rax, 0x80\nmov cr4, rax\nmov rax, {high}\njmp rax")
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rbx == int("1" + "01" * 20, 2) & 0xFFFFFFFF


@pytest.mark.parametrize("visit", _VISITS)
@pytest.mark.parametrize("where", [0, _HIGH], ids=["low", "high"])
@pytest.mark.parametrize("entry_bits", [0, _GLOBAL], ids=["local", "global"])
@pytest.mark.parametrize("before", ["", _RELOAD], ids=["at-once", "reloaded"])
def test_invlpg_drops_all_of_a_large_page(visit: str, where: int, entry_bits: int, before: str) -> None:
    entry, address = _PD + 8 * 200, 200 << 21
    with SmallGuest() as guest:
        # The same place in each of the two 2 MiB pages that there are.
        for number, page in enumerate((FREE, FREE + (2 << 20)), 1):
            guest.top.write(page, assemble(f"mov ecx, {number}\nret", FREE))
        guest.top.write_u64(_PML4 + 8 * 256, _PDPT | _LINK)
        guest.top.write_u64(entry, _LINK | _LARGE | entry_bits)
        guest.put(
            f"mov rax, cr4\nor rax, 0x80\nmov cr4, rax\nmov rdi, {where + address + FREE}\n{_VISITS[visit]}\n{before}\n"
            f"{_VISITS[visit]}\nmov esi, ecx\nmov rbx, {2 << 20 | _LINK | _LARGE | entry_bits}\nmov [{entry}], rbx\n"
            f"mov rbx, {where + address}\ninvlpg [rbx]\n{_VISITS[visit]}\nhlt"
        )
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert (guest.vmsa().rsi, guest.vmsa().rcx) == (1, 2)


def _reloaded(guest: SmallGuest, change: str) -> None:
    """Use a page, change what is written in RBX's place of memory, load CR3 with what it has, and use it again."""
    guest.top.write(FREE, b"\x01")
    guest.top.write(_OTHER, b"\x02")
    guest.put(
        f"mov rdi, {FREE}\nmovzx esi, byte ptr [rdi]\nmov byte ptr [rdi + 1], 1\n{_RELOAD}\n{change}\n{_RELOAD}\n"
        "movzx ecx, byte ptr [rdi]\nmov byte ptr [rdi + 1], 1\nhlt"
    )
    assert guest.run() == ExitCode.HLT
    assert guest.vmsa().rsi == 1


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_cr3_loaded_again_sees_an_entry_that_changed(level: int) -> None:
    """At any level: a copy of the tables on the way leads to the other page, or a page is there no more."""
    with SmallGuest() as guest:
        tables = {1: _PT, 2: _PD, 3: _PDPT, 4: _PML4}
        copies = {below: FREE + (16 + below) * PAGE for below in range(1, level)}
        for below, copy in copies.items():
            guest.top.write(copy, guest.top.read(tables[below], PAGE))
        for below, copy in copies.items():
            if below > 1:
                guest.top.write_u64(copy, copies[below - 1] | _LINK)
        entry = FREE // PAGE * 8
        if level == 1:
            change = f"mov rbx, {_OTHER | _LINK}\nmov [{_ENTRY}], rbx"
        else:
            guest.top.write_u64(copies[1] + entry, _OTHER | _LINK)
            change = f"mov rbx, {copies[level - 1] | _LINK}\nmov [{tables[level]}], rbx"
        _reloaded(guest, change)
        assert guest.trap().times == 0
        assert guest.vmsa().rcx == 2


def test_cr3_loaded_again_sees_a_page_that_is_gone() -> None:
    with SmallGuest() as guest:
        _reloaded(guest, f"mov qword ptr [{_ENTRY}], 0")
        trap = guest.trap()
        assert (trap.vector, trap.times) == (14, 1)


@pytest.mark.parametrize("bits", [0x20, 0x40, 0x60], ids=["accessed", "dirty", "both"])
def test_cr3_loaded_again_sets_the_bits_that_the_guest_cleared(bits: int) -> None:
    with SmallGuest() as guest:
        _reloaded(guest, f"and qword ptr [{_ENTRY}], {~bits}")
        assert guest.trap().times == 0
        assert guest.top.read_u64(_ENTRY) & 0x60 == 0x60


def test_cr3_loaded_again_sees_an_entry_that_was_another_meanwhile() -> None:
    """First, second, first again: what the TLB has of the second is not taken for the first."""
    with SmallGuest() as guest:
        second = f"mov rbx, {_OTHER | _LINK}\nmov [{_ENTRY}], rbx\n{_INVLPG}\nmov byte ptr [rdi + 2], 1"
        _reloaded(guest, f"mov r8, [{_ENTRY}]\n{second}\nmov [{_ENTRY}], r8")
        assert guest.vmsa().rcx == 1


def test_cr3_loaded_again_sees_that_bit_63_is_reserved_again() -> None:
    """EFER.NXE: off when the first entry was read, on when the page was, off again."""
    with SmallGuest() as guest:
        guest.top.write_u64(_ENTRY, FREE | _LINK | 1 << 63)
        toggle = "mov ecx, 0xC0000080\nrdmsr\nxor eax, 0x800\nwrmsr"
        guest.put(
            f"{toggle}\n{_RELOAD}\nmov rdi, {_OTHER}\nmov al, [rdi]\n{toggle}\nmov rdi, {FREE}\nmov al, [rdi]\n"
            f"mov esi, 1\n{toggle}\n{_RELOAD}\nmov al, [rdi]\nhlt"
        )
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.error_code, trap.times, guest.vmsa().rsi) == (14, 9, 1, 1)


def test_cr3_loaded_again_after_more_pages_than_are_remembered() -> None:
    with SmallGuest() as guest:
        many = f"mov edx, 400\nmov r9, {FREE}\nmany: mov al, [r9]\nadd r9, {PAGE}\ndec edx\njnz many\n"
        _reloaded(guest, many + f"mov rbx, {_OTHER | _LINK}\nmov [{_ENTRY}], rbx")
        assert guest.trap().times == 0
        assert guest.vmsa().rcx == 2


def test_cr3_loaded_again_with_the_same_tables_costs_no_walks() -> None:
    turns = 1000
    with SmallGuest() as guest:
        guest.put(
            f"mov ecx, {turns}\nmov rdi, {FREE}\nagain: mov rdx, [rdi]\nmov [rdi + {PAGE}], rdx\n{_RELOAD}\n"
            "dec ecx\njnz again\nhlt"
        )
        assert guest.run() == ExitCode.HLT
        assert guest.machine.counters.cr3_loads == turns
        assert guest.machine.counters.tlb_fills < turns / 4
