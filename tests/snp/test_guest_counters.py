# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine counts, and that no layout of a program makes it slow: the same work costs the same counts."""

from __future__ import annotations

import pytest

from tests.small_guest import FREE, PAGE, SmallGuest
from veil.snp import COUNTER_NAMES, ExitCode

_TURNS = 20_000
_FUNCTIONS = 0x180000
#: pages of a table of the soft TLB as it begins; two that are so far apart share a place in it
_TABLE = 2048
_PD, _PT, _LINK = 0x3000, 0x4000, 7 | 1 << 51


def _counts(guest: SmallGuest) -> dict[str, int]:
    return {name: getattr(guest.machine.counters, name) for name in COUNTER_NAMES}


@pytest.mark.parametrize("cpl", [0, 3])
def test_pages_that_share_a_place_in_the_soft_tlb_do_not_displace_each_other_for_ever(cpl: int) -> None:
    code = f"""
        mov ecx, {_TURNS}
        mov rdi, {FREE}
    again:
        mov rax, [rdi]
        mov rax, [rdi + {_TABLE * PAGE}]
        pause
        dec ecx
        jnz again
        mov rax, 0
        {"hlt" if cpl == 0 else "int 3"}
    """
    with SmallGuest(code, cpl=cpl) as guest:
        # The first 2 MiB once more.
        guest.top.write_u64(_PD + 8 * (_TABLE // 512), _PT | _LINK)
        assert guest.run() == ExitCode.HLT
        counts = _counts(guest)
    # The loop is left at each PAUSE, where a table that is too small can grow.
    assert counts["loop_entries"] >= _TURNS
    assert counts["tlb_conflicts"] < _TURNS / 4
    assert 1 <= counts["tlb_resizes"] <= 8


def test_a_page_of_small_functions_is_found_without_lookups() -> None:
    number = 120
    calls = ".balign 32\ncall rdi\nadd rdi, 32\n" * number
    with SmallGuest() as guest:
        guest.put(".balign 32\nnop\nret\n" * number, _FUNCTIONS)
        guest.put(f"mov ecx, 200\nagain:\nmov rdi, {_FUNCTIONS}\n{calls}dec ecx\njnz again\nhlt")
        assert guest.run() == ExitCode.HLT
        counts = _counts(guest)
    # Each of the calls and returns is an indirect jump: 48,000 of them.
    assert number < counts["block_lookups"] < 4000
    assert 2 * number < counts["blocks_made"] < 3 * number


# With 2 and 3 an instruction lies in both pages, which must be looked up each time.
@pytest.mark.parametrize("before_the_end", [1, *range(4, 16)])
def test_a_loop_over_the_end_of_a_page_stays_in_generated_code(before_the_end: int) -> None:
    # A block ends before each instruction that might reach into the next page.
    loop = f"again:\n{'nop' + chr(10) if before_the_end % 2 else ''}add rax, 3\ndec ecx\njnz again\nhlt"
    with SmallGuest(f"mov ecx, {_TURNS}\nmov rbx, {FREE + PAGE - before_the_end}\njmp rbx") as guest:
        guest.put(loop, FREE + PAGE - before_the_end)
        assert guest.run() == ExitCode.HLT
        counts = _counts(guest)
        assert guest.vmsa().rax == 3 * _TURNS
    # Time that passes leaves it now and then.
    assert counts["loop_entries"] < _TURNS / 4


def test_what_is_counted() -> None:
    code = f"""
        mov rax, cr3
        mov cr3, rax
        mov rdi, {FREE}
        invlpg [rdi]
        mov byte ptr [rip + after], 0x90
    after:
        nop
        int 3
    """
    with SmallGuest(code) as guest:
        before = _counts(guest)
        assert guest.run() == ExitCode.HLT
        counts = {name: count - before[name] for name, count in _counts(guest).items()}
    assert (counts["vmruns"], counts["cr3_loads"], counts["page_flushes"], counts["events"]) == (1, 1, 1, 1)
    assert counts["code_stores"] >= 1
    assert counts["full_flushes"] >= counts["flushes"] == 1
    assert counts["tlb_fills"] > 0 < counts["blocks_made"]
    assert counts["instructions"] == 0


def test_code_is_not_translated_again_for_another_stack_segment() -> None:
    """In 64-bit code it means nothing. Events leave a null selector in SS; SYSCALL and VMRUN leave another one."""
    made = []
    for selector in ("mov eax, ss", "xor eax, eax"):
        vmgexit = ".byte 0xf3, 0x0f, 0x01, 0xd9"
        code = f"1: call 2f\n{vmgexit}\n{selector}\nmov ss, eax\nnop\njmp 1b\n2: push rcx\npop rdx\nret"
        with SmallGuest(code) as guest:
            for _ in range(3):
                assert guest.run() == ExitCode.VMGEXIT
            made.append(guest.machine.counters.blocks_made)
    assert made[0] == made[1]
