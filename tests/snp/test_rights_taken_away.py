# SPDX-License-Identifier: GPL-2.0-or-later
"""Rights that the RMP takes away end at once, in each context and through each translation; others stay."""

from __future__ import annotations

import pytest

from tests.small_guest import FREE, PAGE, SmallGuest
from veil.snp import ExitCode, PageSize, Permission, RmpResult
from veil.snp.rmp import REMEMBERED

VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9\n"
OTHER_VMSA = 0x40000
#: the same pages again; at the same places of the TLB, which is direct mapped
ALIAS = 2 << 30
_PDPT, _PD = 0x2000, 0x3000
LARGE = 0x200000

READ = f"mov rax, [{FREE}]"
WRITE = f"mov [{FREE}], al"
CALL = f"mov rax, {FREE}\ncall rax"
READ_ALIAS = f"mov rax, {ALIAS + FREE}\nmov rax, [rax]"
READ_LARGE = f"mov rax, [{LARGE + 5 * PAGE}]"
ACCESSES = [
    (READ, Permission.R),
    (READ_ALIAS, Permission.R),
    (WRITE, Permission.W),
    (CALL, Permission.SX),
]


class Guest(SmallGuest):
    """Two contexts of VMPL 3 that make the same access again and again."""

    def __init__(self, access: str, called: str = "ret", at: int = FREE) -> None:
        super().__init__(f"1: {access}\n{VMGEXIT}jmp 1b")
        self.put(called, at)
        self.top.write_u64(_PDPT + 8 * (ALIAS >> 30), _PD | 7 | 1 << 51)
        self.contexts = [self.vmcb, self.make_context(OTHER_VMSA, vmpl=3)]
        for vmcb in self.contexts * 2:
            assert self.run(vmcb) == ExitCode.VMGEXIT

    def all_refused(self) -> None:
        """Both contexts."""
        for vmcb in self.contexts:
            assert self.run(vmcb) == ExitCode.NPF

    def change(self, times: int) -> None:
        """Rights to pages of no interest end, and come back."""
        for number in range(times):
            gpa = FREE + (1 + number % 20) * PAGE
            self.permit(gpa, Permission.R)
            self.permit(gpa, Permission.ALL)


@pytest.mark.parametrize(("access", "right"), ACCESSES)
@pytest.mark.parametrize("changes", [0, 1, REMEMBERED - 2, REMEMBERED - 1, REMEMBERED, REMEMBERED + 1, 3 * REMEMBERED])
def test_each_right(access: str, right: Permission, changes: int) -> None:
    """However many other rights were taken away after it, and before."""
    with Guest(access) as guest:
        for before in (0, changes):
            guest.change(before)
            guest.permit(FREE, Permission.ALL & ~right)
            guest.change(changes)
            guest.all_refused()
            guest.permit(FREE, Permission.ALL)
            for vmcb in guest.contexts:
                assert guest.run(vmcb) == ExitCode.VMGEXIT


@pytest.mark.parametrize(("access", "_right"), ACCESSES)
def test_a_page_that_is_not_validated_any_more(access: str, _right: Permission) -> None:
    with Guest(access) as guest:
        guest.invalidate(FREE)
        for number, vmcb in enumerate(guest.contexts):
            assert guest.run(vmcb) == ExitCode.HLT
            assert guest.trap().vector == 29
            assert guest.trap().times == number + 1


@pytest.mark.parametrize(("access", "_right"), ACCESSES)
def test_a_page_that_the_host_takes(access: str, _right: Permission) -> None:
    with Guest(access) as guest:
        guest.share(FREE)
        guest.all_refused()


def test_all_of_the_table_is_another_one() -> None:
    with Guest(READ) as guest:
        rmp = guest.machine.rmp
        open_to_all = rmp.dump()
        guest.permit(FREE, Permission.NONE)
        closed = rmp.dump()
        rmp.load(open_to_all)
        for vmcb in guest.contexts:
            assert guest.run(vmcb) == ExitCode.VMGEXIT
        rmp.load(closed)
        guest.all_refused()


def test_code_whose_translation_was_displaced() -> None:
    """A jump does not look at the TLB: that it has no entry for the page says nothing."""
    looks = "".join(
        f"mov rax, [{FREE + number * PAGE}]\nmov rax, {ALIAS + FREE + number * PAGE}\nmov rax, [rax]\n"
        for number in range(20)
    )
    with Guest(f"{CALL}\n{looks}") as guest:
        guest.permit(FREE, Permission.ALL & ~Permission.SX)
        guest.all_refused()


@pytest.mark.parametrize("page", [FREE, FREE + PAGE], ids=["first", "second"])
def test_an_instruction_over_the_end_of_a_page(page: int) -> None:
    """It needs the right to execute both."""
    start = FREE + PAGE - 5
    with Guest(f"mov rax, {start}\ncall rax", "mov rcx, 0x123456789abcdef\nret", start) as guest:
        guest.permit(page, Permission.ALL & ~Permission.SX)
        guest.all_refused()
        assert [vmcb.exit_info_2 & -PAGE for vmcb in guest.contexts] == [page, page]
        guest.permit(page, Permission.ALL)
        for vmcb in guest.contexts:
            assert guest.run(vmcb) == ExitCode.VMGEXIT


@pytest.mark.parametrize("changes", [0, 1, 3 * REMEMBERED])
def test_a_large_page(changes: int) -> None:
    with Guest("nop") as guest:
        assert guest.host.rmpupdate(LARGE, assigned=False, count=512) == RmpResult.SUCCESS
        assert guest.host.rmpupdate(LARGE, assigned=True, size=PageSize.SIZE_2M) == RmpResult.SUCCESS
        assert guest.top.pvalidate(LARGE, size=PageSize.SIZE_2M).code == RmpResult.SUCCESS

        def permit(permissions: Permission) -> None:
            code = guest.top.rmpadjust(LARGE, vmpl=3, permissions=permissions, size=PageSize.SIZE_2M)
            assert code == RmpResult.SUCCESS

        permit(Permission.ALL)
        guest.put(f"1: {READ_LARGE}\n{VMGEXIT}jmp 1b")
        guest.contexts = [guest.make_context(vmcb.vmsa_pa, vmpl=3) for vmcb in guest.contexts]
        for _ in range(2):
            for vmcb in guest.contexts:
                assert guest.run(vmcb) == ExitCode.VMGEXIT
            permit(Permission.NONE)
            guest.change(changes)
            guest.all_refused()
            permit(Permission.ALL)


def test_a_page_table_that_cannot_be_read_any_more() -> None:
    """What was found through it goes with it, though no right to the page that it led to has ended."""
    with Guest(READ_ALIAS) as guest:
        guest.permit(_PDPT, Permission.ALL & ~Permission.R)
        guest.all_refused()


def test_translations_of_other_pages_stay() -> None:
    """A kernel would else find all of its pages again each time that a monitor takes one away."""
    looks = "".join(f"mov rax, [{FREE + number * PAGE}]\n" for number in range(20))
    with Guest(looks) as guest:
        counters = guest.machine.counters
        for _ in range(5):
            before = counters.tlb_fills, counters.flushes, counters.block_lookups
            guest.permit(FREE + 30 * PAGE, Permission.R)
            guest.permit(FREE + 30 * PAGE, Permission.ALL)
            guest.permit(FREE, Permission.ALL, vmpl=1)
            guest.permit(FREE, Permission.NONE, vmpl=1)
            for vmcb in guest.contexts:
                assert guest.run(vmcb) == ExitCode.VMGEXIT
            assert (counters.tlb_fills, counters.flushes, counters.block_lookups) == before
        before = counters.tlb_fills, counters.flushes, counters.block_lookups
        guest.permit(FREE, Permission.ALL & ~Permission.W)
        for vmcb in guest.contexts:
            assert guest.run(vmcb) == ExitCode.VMGEXIT
        assert (counters.tlb_fills - 2, counters.flushes, counters.block_lookups) == before
