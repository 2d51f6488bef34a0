# SPDX-License-Identifier: GPL-2.0-or-later
"""Instruction fetch, block by block: where code crosses pages, and where code changes under itself."""

from __future__ import annotations

import pytest

from tests.machine_code import assemble
from tests.small_guest import CODE, FREE, PAGE, VMSA, SmallGuest
from veil.snp import ExitCode, Permission, RmpResult

_NEXT = FREE + PAGE
_COUNTER = FREE + 8 * PAGE
_PT_OF_FREE = 0x4000
_INC = f"inc qword ptr [{_COUNTER}]"


def _straddling(guest: SmallGuest, *, inside: int) -> int:
    """Two increments, then an instruction of which `inside` bytes are in the first page; returns its address."""
    last = "mov ecx, 0x01020304"  # five bytes
    lead = len(assemble(f"{_INC}\n{_INC}", FREE))
    start = _NEXT - inside - lead
    guest.put(f"{_INC}\n{_INC}\n{last}\nhlt", start)
    guest.put(f"mov rax, {start}\njmp rax")
    return _NEXT - inside


@pytest.mark.parametrize("inside", [0, 1, 4])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "translated"])
def test_code_runs_up_to_a_page_that_is_forbidden(inside: int, warm: bool) -> None:
    with SmallGuest() as guest:
        address = _straddling(guest, inside=inside)
        expected = 2
        if warm:
            assert guest.run() == ExitCode.HLT
            guest.top.write_u64(VMSA + 0x178, CODE)
            expected = 4
        guest.permit(_NEXT, Permission.R | Permission.W | Permission.UX)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_2 & ~0xFFF == _NEXT
        # Precise: what comes before happened, and happened once; RIP is at the instruction that could not be read.
        assert guest.vmsa().rip == address
        assert guest.top.read_u64(_COUNTER) == expected
        guest.permit(_NEXT, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rcx == 0x01020304
        assert guest.top.read_u64(_COUNTER) == expected


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "translated"])
def test_code_runs_up_to_a_page_that_is_not_present(warm: bool) -> None:
    with SmallGuest() as guest:
        address = _straddling(guest, inside=2)
        expected = 2
        if warm:
            assert guest.run() == ExitCode.HLT
            expected = 4
            # The guest itself flushes what it knows of the page.
            start = address - len(assemble(f"{_INC}\n{_INC}", FREE))
            entry = _PT_OF_FREE + 8 * (_NEXT // PAGE)
            guest.put(f"mov qword ptr [{entry}], 0\ninvlpg [{_NEXT}]\nmov rax, {start}\njmp rax")
            guest.top.write_u64(VMSA + 0x178, CODE)
        else:
            guest.top.write_u64(_PT_OF_FREE + 8 * (_NEXT // PAGE), 0)
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.rip, trap.times) == (14, address, 1)
        assert guest.vmsa().cr2 == _NEXT
        assert guest.top.read_u64(_COUNTER) == expected


def test_a_block_over_two_pages_follows_a_new_mapping_of_the_second() -> None:
    with SmallGuest() as guest:
        _straddling(guest, inside=1)
        assert guest.run() == ExitCode.HLT
        other = FREE + 4 * PAGE
        page = bytearray(guest.top.read(_NEXT, PAGE))
        page[:4] = (0x0A0B0C0D).to_bytes(4, "little")
        guest.top.write(other, bytes(page))
        entry = _PT_OF_FREE + 8 * (_NEXT // PAGE)
        new = guest.top.read_u64(entry) & ~0xFFFFFF000 | other
        start = _NEXT - 1 - len(assemble(f"{_INC}\n{_INC}", FREE))
        guest.put(f"mov rbx, {new}\nmov [{entry}], rbx\ninvlpg [{_NEXT}]\nmov rax, {start}\njmp rax")
        guest.top.write_u64(VMSA + 0x178, CODE)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rcx == 0x0A0B0C0D


def test_a_store_into_its_own_block() -> None:
    # The very next instruction changes: no jump in between, as the architecture allows for one processor.
    with SmallGuest("mov byte ptr [rip + next + 1], 2\nnext: mov ecx, 1\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rcx == 2


@pytest.mark.parametrize(
    "change",
    [
        "mov eax, 2\nlea rdi, [rip + next + 1]\nmov ecx, 1\nrep stosb",
        "lea rbx, [rip + next + 1]\nxor eax, eax\nmov ecx, 0x03\nadd byte ptr [rbx], 1",
        "lea rbx, [rip + next + 1]\nmov eax, 1\nmov ecx, 2\nlock cmpxchg [rbx], cl",
        "lea rsp, [rip + next + 9]\nmov rax, 0xf4f4f4f400000002\npush rax",
        "mov eax, 2\nmovd xmm0, eax\nmovd [rip + next + 1], xmm0",
        "push 2\nfild dword ptr [rsp]\nfistp dword ptr [rip + next + 1]",
    ],
    ids=["stos", "add", "cmpxchg", "push", "sse", "x87"],
)
def test_every_kind_of_store_into_its_own_block(change: str) -> None:
    with SmallGuest(f"{change}\nnext: mov ebx, 1\nhlt\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rbx == 2


def test_an_exception_frame_written_over_code() -> None:
    # The frame's error code and RIP land where the handler's next instructions are.
    with SmallGuest("lea rsp, [rip + victim + 64]\nud2\n.balign 64\nvictim: .fill 64, 1, 0x90\nhlt") as guest:
        guest.put("nop\nhlt", FREE)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 6


def test_accessed_bits_set_in_a_page_with_code() -> None:
    # A page directory entry is at the same time the operand of MOV: a walk sets bit 5 of what MOV loads.
    with SmallGuest() as guest:
        entry, table = 0x3000 + 8 * 100, FREE + 16 * PAGE
        guest.top.write_u64(entry, table | 7 | 1 << 51)
        guest.top.write_u64(table, FREE | 7 | 1 << 51)
        guest.top.write(entry - 1, b"\xb8")  # mov eax, the entry's low half
        # The entry's other bytes, 00 00 08 00, are ADD and OR of AL to [RAX]: harmless.
        guest.top.write(entry + 8, assemble("jmp rbp", entry + 8))
        visit = f"mov rax, {entry - 1}\nlea rbp, [rip + {{0}}]\njmp rax\n{{0}}:\n"
        guest.put(visit.format("first") + f"mov rbx, rax\nmov rcx, [{100 << 21}]\n" + visit.format("second") + "hlt")
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert guest.vmsa().rbx == table | 7
        assert guest.vmsa().rax == table | 7 | 0x20


def test_a_page_that_changed_hands_does_not_run_as_before() -> None:
    with SmallGuest(f"mov rax, {FREE}\ncall rax\nhlt\nmov rax, {FREE}\ncall rax\nhlt") as guest:
        guest.top.write(FREE, b"\xb9\x07\x00\x00\x00\xc3" + b"\xf4" * 4090)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rcx == 7
        # The host takes the page and gives it back as it was: the guest finds noise, never its own code again.
        guest.invalidate(FREE)
        guest.share(FREE)
        taken = guest.host.read(FREE, PAGE)
        guest.host.write(FREE, b"\xb9\x08\x00\x00\x00\xc3" + b"\xf4" * 4090)
        assert guest.host.rmpupdate(FREE, assigned=True) == RmpResult.SUCCESS
        guest.top.pvalidate(FREE)
        guest.permit(FREE, Permission.ALL)
        assert guest.top.read(FREE, 6) not in (b"\xb9\x07\x00\x00\x00\xc3", b"\xb9\x08\x00\x00\x00\xc3")
        assert taken[:6] != b"\xb9\x07\x00\x00\x00\xc3"
        # What runs is what a view reads: put one instruction there and see it run.
        guest.top.write(FREE, b"\xf4")
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rip == FREE + 1
