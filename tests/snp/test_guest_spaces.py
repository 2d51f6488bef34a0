# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces whose translations outlive the run of others: what became outdated meanwhile is not used."""

from __future__ import annotations

import pytest

from tests.machine_code import assemble
from tests.small_guest import FREE, PAGE, TABLES, VMSA, SmallGuest
from veil.snp import ExitCode, Permission
from veil.snp.layouts import Vmcb, Vmsa

VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9\n"
OTHER_VMSA, OTHER_CODE = 0x40000, 0x41000
#: the page that the first context reads again and again
READ = FREE
ACCESSED = 1 << 5
SPACES = 16

LOOK = f"1: mov rbx, [{READ}]\n{VMGEXIT}jmp 1b"


class TwoSpaces(SmallGuest):
    """A context that looks, and another one, of the same level or of VMPL 2."""

    def __init__(self, other: str, *, vmpl: int = 3, cpl: int = 0) -> None:
        super().__init__(LOOK)
        self.put(f"1: {other}\n{VMGEXIT}jmp 1b", OTHER_CODE)
        if vmpl == 2:
            for gpa in (*TABLES, OTHER_CODE, READ):
                self.permit(gpa, Permission.ALL, 2)
        self.other = self.make_context(OTHER_VMSA, vmpl=vmpl, cpl=cpl, rip=OTHER_CODE)

    def look(self) -> int:
        """What the first context finds."""
        assert self.run() == ExitCode.VMGEXIT
        return int(self.vmsa().rbx)

    def run_other(self) -> None:
        assert self.run(self.other) == ExitCode.VMGEXIT


def fills(guest: SmallGuest) -> int:
    return guest.machine.counters.tlb_fills


@pytest.mark.parametrize("vmpl", [2, 3])
def test_translations_are_kept(vmpl: int) -> None:
    with TwoSpaces("nop", vmpl=vmpl, cpl=3 if vmpl == 2 else 0) as guest:
        for _ in range(2):  # from the beginning, and from behind VMGEXIT
            guest.look()
            guest.run_other()
        before = fills(guest), guest.machine.counters.block_lookups
        for _ in range(10):
            guest.look()
            guest.run_other()
        assert (fills(guest), guest.machine.counters.block_lookups) == before


def test_a_right_taken_away_meanwhile() -> None:
    with TwoSpaces("nop") as guest:
        guest.look()
        guest.run_other()
        guest.permit(READ, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        guest.permit(READ, Permission.ALL)
        guest.look()


@pytest.mark.parametrize(("flush", "found"), [("nop\n" * 3, 1), (".byte 0x0f, 0x01, 0xfe\n.byte 0x0f, 0x01, 0xff", 2)])
def test_invlpgb_is_for_every_context(flush: str, found: int) -> None:
    """COCONUT-SVSM tells its other processors so; without it the old translation is allowed to stay, and does."""
    entry = TABLES[3] + READ // PAGE * 8
    with TwoSpaces(f"add qword ptr [{entry}], {PAGE}\nmov eax, 0xC\nxor ecx, ecx\nxor edx, edx\n{flush}") as guest:
        guest.top.write_u64(READ, 1)
        guest.top.write_u64(READ + PAGE, 2)
        assert guest.look() == 1
        guest.run_other()
        assert guest.look() == found


@pytest.mark.parametrize(
    ("eax", "ecx", "edx", "cpl", "refused"),
    [(0xC, 7, 0x0FFF_FFFF, 0, False), (0x3F, 1 << 31, 0, 0, False), (1 << 6, 0, 0, 0, True), (0xC, 8, 0, 0, True),
     (0xC, 1 << 16, 0, 0, True), (0xC, 0, 1 << 28, 0, True), (0xC, 0, 0, 3, True)],
    ids=["most", "an address", "rAX reserved", "too many", "ECX reserved", "EDX reserved", "user code"],
)  # fmt: skip
def test_what_invlpgb_refuses(eax: int, ecx: int, edx: int, cpl: int, refused: bool) -> None:
    code = f"mov eax, {eax}\nmov ecx, {ecx}\nmov edx, {edx}\n.byte 0x0f, 0x01, 0xfe\n{VMGEXIT}"
    with SmallGuest(code, cpl=cpl) as guest:
        assert guest.run() == (ExitCode.HLT if refused else ExitCode.VMGEXIT)
        assert guest.trap().times == refused
        assert not refused or (guest.trap().vector, guest.trap().error_code) == (13, 0)


def test_tlbsync_is_for_the_kernel() -> None:
    for cpl in (0, 3):
        with SmallGuest(f".byte 0x0f, 0x01, 0xff\n{VMGEXIT}", cpl=cpl) as guest:
            assert guest.run() == (ExitCode.HLT if cpl else ExitCode.VMGEXIT)
            assert guest.trap().times == bool(cpl)


def test_a_page_taken_away_meanwhile() -> None:
    with TwoSpaces("nop") as guest:
        guest.look()
        guest.run_other()
        guest.share(READ)
        assert guest.run() == ExitCode.NPF


def test_page_tables_that_hosted_code_changed_meanwhile() -> None:
    """Of VMPL 2: VeilS-ENC maps another page, and no INVLPG tells of it."""
    with TwoSpaces(f"mov rbx, [{READ}]", vmpl=2, cpl=3) as guest:
        guest.top.write_u64(READ, 1)
        guest.top.write_u64(READ + PAGE, 2)
        guest.permit(READ + PAGE, Permission.ALL, 2)
        guest.run_other()
        assert guest.vmsa(OTHER_VMSA).rbx == 1
        entry = TABLES[3] + READ // PAGE * 8
        guest.top.write_u64(entry, guest.top.read_u64(entry) + PAGE)
        guest.run_other()
        assert guest.vmsa(OTHER_VMSA).rbx == 2
        # And with another context in between.
        guest.look()
        guest.top.write_u64(entry, guest.top.read_u64(entry) - PAGE)
        guest.look()
        guest.run_other()
        assert guest.vmsa(OTHER_VMSA).rbx == 1
        # Nothing is mapped any more, the handlers neither.
        guest.top.zero(TABLES[3], PAGE)
        assert guest.run(guest.other) == ExitCode.SHUTDOWN


def test_a_page_that_hosted_code_mapped_meanwhile() -> None:
    """It was in no TLB: what there is stays. And an entry whose "accessed" was cleared is walked again, and marked."""
    with TwoSpaces(f"mov rbx, [{READ + PAGE}]\nmov rcx, [{READ}]", vmpl=2, cpl=3) as guest:
        guest.top.write_u64(READ + PAGE, 2)
        guest.permit(READ + PAGE, Permission.ALL, 2)
        entries = [TABLES[3] + page // PAGE * 8 for page in (READ, READ + PAGE, READ + 2 * PAGE)]
        new = guest.top.read_u64(entries[2])
        guest.top.write_u64(entries[2], 0)
        for _ in range(2):
            guest.run_other()
        counters = guest.machine.counters
        before = counters.flushes, counters.tlb_fills, counters.block_lookups
        guest.top.write_u64(entries[2], new)
        guest.run_other()
        assert (counters.flushes, counters.tlb_fills, counters.block_lookups) == before
        guest.top.write_u64(entries[1], guest.top.read_u64(entries[1]) & ~ACCESSED)
        guest.run_other()
        assert counters.flushes == before[0] + 1
        assert guest.top.read_u64(entries[1]) & ACCESSED
        assert guest.vmsa(OTHER_VMSA).rbx == 2


def test_code_made_meanwhile_from_a_page_that_the_first_writes() -> None:
    """The store through a translation from before drops what was translated from the page."""
    target = 0x50000
    with SmallGuest(f"1: mov [{target + 1}], al\n{VMGEXIT}inc al\njmp 1b") as guest:
        guest.put("mov bl, 0x77\nret", target)
        guest.put(f"1: call {target}\n{VMGEXIT}jmp 1b", OTHER_CODE)
        other = guest.make_context(OTHER_VMSA, vmpl=3, rip=OTHER_CODE)
        vmsa = guest.vmsa(OTHER_VMSA)
        vmsa.rsp = 0x60000
        guest.top.write(OTHER_VMSA, bytes(vmsa))
        guest.top.write_u64(VMSA + Vmsa.rax.offset, 1)
        for number in range(1, 20):
            assert guest.run() == ExitCode.VMGEXIT
            assert guest.run(other) == ExitCode.VMGEXIT
            assert guest.vmsa(OTHER_VMSA).rbx & 0xFF == number
        assert guest.machine.counters.code_stores > 0


def test_registers_that_a_monitor_changed_meanwhile() -> None:
    """Another CR3 is another address space."""
    with TwoSpaces("nop") as guest:
        guest.top.write_u64(READ, 1)
        guest.top.write_u64(READ + PAGE, 2)
        # A copy of the tables in which READ is the next page.
        tables = {gpa: 0x200000 + number * PAGE for number, gpa in enumerate(TABLES)}
        for gpa, copy in tables.items():
            guest.top.write(copy, guest.top.read(gpa, PAGE))
        for level in range(3):
            guest.top.write_u64(tables[TABLES[level]], tables[TABLES[level + 1]] | 7 | 1 << 51)
        entry = tables[TABLES[3]] + READ // PAGE * 8
        guest.top.write_u64(entry, guest.top.read_u64(entry) + PAGE)
        assert guest.look() == 1
        old = guest.vmsa().cr3
        guest.run_other()
        guest.top.write_u64(VMSA + Vmsa.cr3.offset, tables[TABLES[0]])
        assert guest.look() == 2
        guest.run_other()
        guest.top.write_u64(VMSA + Vmsa.cr3.offset, old)
        assert guest.look() == 1


def test_the_same_address_is_other_code_in_another_space() -> None:
    """Blocks of several spaces are in the jump cache at once; of more spaces than are kept, too."""
    window = 0x1F0000
    with SmallGuest("nop") as guest:
        contexts: list[Vmcb] = []
        for number in range(3 * SPACES):
            base = 0x200000 + number * 6 * PAGE
            tables = [base + level * PAGE for level in range(4)]
            for table, copy in zip(TABLES, tables, strict=False):
                guest.top.write(copy, guest.top.read(table, PAGE))
            for level in range(3):
                guest.top.write_u64(tables[level], tables[level + 1] | 7 | 1 << 51)
            guest.top.write_u64(tables[3] + window // PAGE * 8, (base + 4 * PAGE) | 7 | 1 << 51)
            code = assemble(f"1: mov rbx, {number + 1}\n{VMGEXIT}jmp 1b", window)
            guest.top.write(base + 4 * PAGE, code)
            vmcb = guest.make_context(base + 5 * PAGE, vmpl=3, rip=window)
            guest.top.write_u64(vmcb.vmsa_pa + Vmsa.cr3.offset, tables[0])
            contexts.append(vmcb)
        for few in (contexts[:4], contexts, contexts[:SPACES]):
            for _ in range(70):
                for vmcb in few:
                    assert guest.run(vmcb) == ExitCode.VMGEXIT
                    assert guest.vmsa(vmcb.vmsa_pa).rbx == contexts.index(vmcb) + 1
