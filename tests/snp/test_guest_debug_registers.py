# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own breakpoints: DR0 to DR7, #DB, and whose registers they are with and without DebugSwap."""

from __future__ import annotations

import struct
import time

import pytest

from tests.machine_code import assemble
from tests.small_guest import CODE, FREE, IDT, PAGE, STACK, TRAPS, VMSA, SmallGuest
from veil.snp import ExitCode, StopReason, WatchKind, Watchpoint
from veil.snp.layouts import SUPPORTED_FEATURES, SevFeatures, Vmsa

_DB, _BP, _GP, _UD, _VC = 1, 3, 13, 6, 29
_FLAGS_IMAGE = STACK - 24
_RF, _TF = 1 << 16, 1 << 8
_DR6 = 0xFFFF0FF0
_BD, _BS = 1 << 13, 1 << 14
_DR7 = 0x400
_GD = 1 << 13
_EXECUTE, _WRITE, _ACCESS = 0, 1, 3


def _enable(register: int, kind: int, length: int = 1) -> int:
    """DR7 with one breakpoint, global."""
    encoded = {1: 0, 2: 1, 4: 3, 8: 2}[length]
    return _DR7 | 2 << 2 * register | (kind | encoded << 2) << 16 + 4 * register


def _set(guest: SmallGuest, gpa: int = VMSA, **fields: int) -> None:
    vmsa = guest.vmsa(gpa)
    for name, value in fields.items():
        setattr(vmsa, name, value)
    guest.top.write(gpa, bytes(vmsa))


def _guest(code: str, *, cpl: int = 0, swap: bool = True, **registers: int) -> SmallGuest:
    guest = SmallGuest(code, cpl=cpl)
    features = SevFeatures.SNP | (SevFeatures.DEBUG_SWAP if swap else 0)
    _set(guest, sev_features=int(features), **registers)
    return guest


def _length(code: str) -> int:
    return len(assemble(code, CODE))


def _resume(guest: SmallGuest) -> ExitCode:
    """The handler of a breakpoint of code returns with RF, as every kernel's does."""
    guest.top.write_u64(_FLAGS_IMAGE, guest.top.read_u64(_FLAGS_IMAGE) | _RF)
    return guest.run()


# Breakpoints of code


def test_a_breakpoint_of_code_is_a_fault_in_front_of_its_instruction() -> None:
    before, there = "mov eax, 1\n", "inc eax\n"
    with _guest(f"{before}{there}hlt", dr0=CODE + _length(before), dr7=_enable(0, _EXECUTE)) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE + _length(before))
        assert (guest.vmsa().rax, guest.vmsa().dr6) == (1, _DR6 | 1)
        assert not guest.top.read_u64(_FLAGS_IMAGE) & _RF
        assert _resume(guest) == ExitCode.HLT
        assert (guest.vmsa().rax, guest.trap().times) == (2, 1)


def test_without_rf_it_comes_again() -> None:
    with _guest("inc eax\nhlt", dr3=CODE, dr7=_enable(3, _EXECUTE)) as guest:
        for times in range(1, 4):
            assert guest.run() == ExitCode.HLT
            assert guest.trap() == (_DB, 0, CODE, times)
            assert guest.vmsa().dr6 == _DR6 | 8


def test_in_a_loop_it_comes_each_time() -> None:
    with _guest("mov ecx, 3\nagain: inc eax\nloop again\nhlt", dr1=CODE + 5, dr7=_enable(1, _EXECUTE)) as guest:
        assert guest.run() == ExitCode.HLT
        for times in range(1, 4):
            assert guest.trap() == (_DB, 0, CODE + 5, times)
            assert _resume(guest) == ExitCode.HLT
        assert (guest.vmsa().rax, guest.trap().times) == (3, 3)


def test_rf_lasts_for_one_instruction_and_all_its_iterations() -> None:
    code = f"mov edi, {FREE}\nmov ecx, 5\nrep stosb\nnop\nhlt"
    at = CODE + 10
    with _guest(code, dr0=at, dr1=at + 2, dr7=_enable(0, _EXECUTE) | _enable(1, _EXECUTE)) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_DB, 0, at, 1)
        assert _resume(guest) == ExitCode.HLT
        assert guest.trap() == (_DB, 0, at + 2, 2), "the next instruction has its own"
        assert guest.vmsa().rcx == 0


@pytest.mark.parametrize("swap", [True, False])
def test_only_what_dr7_enables(swap: bool) -> None:
    with _guest("nop\nnop\nhlt", swap=swap, dr0=CODE, dr1=CODE + 1, dr7=_DR7 | 0x300) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().times, guest.vmsa().dr6) == (0, _DR6)


def test_the_guest_sets_them_itself_and_takes_them_back() -> None:
    """Code that has run before, in the middle of a block."""
    code = f"""
        mov ebx, 2
    again:
        lea rax, [rip + there]
        mov dr2, rax
        mov eax, {_enable(2, _EXECUTE)}
        test ebx, 1
        jz 1f
        mov dr7, rax
    1:  inc edx
    there:
        inc esi
        mov eax, {_DR7}
        mov dr7, rax
        dec ebx
        jnz again
        hlt
    """
    with _guest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().times) == (_DB, 1)
        assert (guest.vmsa().rdx, guest.vmsa().rsi) == (2, 1)
        assert _resume(guest) == ExitCode.HLT
        assert (guest.vmsa().rsi, guest.trap().times) == (2, 1)


def test_many_sets_of_them_each_with_its_translations() -> None:
    """More than the engine keeps: each time the breakpoint that is set, and no other."""
    nops = 160
    code = "again:\nmov dr0, rdi\n" + "nop\n" * nops + "hlt\njmp again"
    first = CODE + _length("mov dr0, rdi\n")
    with _guest(code, dr7=_enable(0, _EXECUTE)) as guest:
        for number in [*range(nops), *range(0, nops, 20)]:
            _set(guest, rip=CODE, rdi=first + number, rflags=0x202, rsp=STACK)
            assert guest.run() == ExitCode.HLT
            assert guest.trap().rip == first + number


def test_sysret_does_not_bring_rf() -> None:
    code = "mov rcx, rdi\nmov r11d, 0x10202\nsysretq"
    with _guest(code, rdi=CODE + PAGE, dr0=CODE + PAGE, dr7=_enable(0, _EXECUTE), star=0x13 << 48) as guest:
        guest.put("nop\nud2", CODE + PAGE)
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE + PAGE)


# Breakpoints of data

_AT = FREE + 0x100


@pytest.mark.parametrize(
    ("code", "kind", "length", "hit"),
    [
        ("mov [rdi], al", _WRITE, 1, True),
        ("mov al, [rdi]", _WRITE, 1, False),
        ("mov al, [rdi]", _ACCESS, 1, True),
        ("mov [rdi], al", _ACCESS, 1, True),
        ("mov [rdi + 1], al", _ACCESS, 1, False),
        ("mov [rdi + 3], al", _WRITE, 4, True),
        ("mov [rdi + 4], al", _WRITE, 4, False),
        ("mov [rdi + 7], al", _WRITE, 8, True),
        ("mov rax, [rdi - 7]", _ACCESS, 1, True),
        ("mov rax, [rdi - 8]", _ACCESS, 1, False),
        ("mov rax, [rdi + 1]", _ACCESS, 1, False),
        ("mov [rdi - 3], eax", _WRITE, 2, True),
        ("inc dword ptr [rdi]", _WRITE, 4, True),
        ("lock xadd [rdi], rax", _WRITE, 8, True),
        ("movups [rdi - 15], xmm0", _WRITE, 1, True),
        ("movups xmm0, [rdi - 15]", _ACCESS, 1, True),
        ("movups xmm0, [rdi - 16]", _ACCESS, 1, False),
        ("push [rdi]\npop rcx", _ACCESS, 8, True),
        ("fxsave64 [rdi - 256]", _WRITE, 4, True),
    ],
)
def test_accesses(code: str, kind: int, length: int, hit: bool) -> None:
    """#DB is a trap: RIP is behind the instruction, which is done."""
    first = code.split("\n")[0]
    whole = f"mov edi, {_AT}\n{code}\nnop\nnop\nhlt"
    with _guest(whole, dr1=_AT, dr7=_enable(1, kind, length)) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == hit
        if hit:
            assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE + 5 + _length(first))
        assert guest.vmsa().dr6 == _DR6 | (2 if hit else 0)


def test_pages_beside_it_are_as_ever() -> None:
    with _guest(f"mov edi, {_AT + PAGE}\nmov [rdi], eax\nmov eax, [rdi - {2 * PAGE}]\nhlt", dr0=_AT) as guest:
        _set(guest, dr7=_enable(0, _ACCESS, 8))
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0


def test_the_store_is_done_once_and_the_rest_of_the_block_goes_on() -> None:
    code = f"mov edi, {_AT}\nmov ecx, 7\ninc dword ptr [rdi]\nadd ecx, 1\ninc dword ptr [rdi + 4]\nhlt"
    with _guest(code, dr0=_AT, dr7=_enable(0, _WRITE, 4)) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().rcx, guest.top.read_u64(_AT)) == (7, 1)
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().rcx, guest.top.read_u64(_AT)) == (8, 1 << 32 | 1)
        assert guest.trap().times == 1


def test_of_a_string_instruction_it_comes_behind_the_iteration() -> None:
    code = f"mov edi, {_AT - 3}\nmov ecx, 9\nmov al, 5\nrep stosb\nhlt"
    with _guest(code, dr0=_AT, dr7=_enable(0, _WRITE)) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().rip, guest.vmsa().rcx, guest.vmsa().rdi) == (CODE + 12, 5, _AT + 1)
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().rcx, guest.trap().times) == (0, 1)


def test_several_at_once() -> None:
    dr7 = _enable(0, _WRITE, 8) | _enable(1, _ACCESS) | _enable(3, _WRITE)
    with _guest(f"mov edi, {_AT}\nmov [rdi], rax\nhlt", dr0=_AT, dr1=_AT + 7, dr3=_AT + 8, dr7=dr7) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().dr6, guest.trap().times) == (_DR6 | 3, 1)


def test_an_event_that_is_delivered_meets_it() -> None:
    """The frame of INT3 is on watched memory; #DB comes when the handler begins, its own frame is let be."""
    with _guest("int3\nhlt", dr0=STACK - 8, dr7=_enable(0, _WRITE, 8)) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().times) == (_DB, 1)
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().times) == (_BP, 2)


def test_a_frame_of_db_does_not_raise_db() -> None:
    """A guest could hold its processor with it for ever."""
    with _guest("nop\nhlt", dr0=CODE, dr1=STACK - 8, dr7=_enable(0, _EXECUTE) | _enable(1, _WRITE, 8)) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().times, guest.vmsa().dr6) == (_DB, 1, _DR6 | 1)


@pytest.mark.parametrize(
    ("behind", "vectors"), [("nop", [_DB]), ("int3", [_DB, _BP]), ("int 0x30", [_DB, 0x30]), (".byte 0xf1", [_DB])]
)
def test_mov_ss_holds_it_back_for_one_instruction(behind: str, vectors: list[int]) -> None:
    code = f"mov edi, {_AT}\nmov ss, [rdi]\n{behind}\nhlt"
    with _guest(code, dr0=_AT, dr7=_enable(0, _ACCESS, 2)) as guest:
        guest.top.write_u64(_AT, 0x10)
        seen = []
        for _ in vectors:
            assert guest.run() == ExitCode.HLT
            seen.append(guest.trap().vector)
        assert seen == vectors
        assert guest.vmsa().dr6 == _DR6 | 1
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == len(vectors)


def test_another_address_space_is_not_marked() -> None:
    """Another VMSA of the same memory, which has enabled nothing, between runs of one that has."""
    with _guest(f"mov edi, {_AT}\nagain: mov [rdi], eax\nhlt\njmp again", dr0=_AT) as guest:
        _set(guest, dr7=_enable(0, _WRITE, 4))
        other = guest.make_context(0xE000, vmpl=3)
        for times in range(1, 4):
            assert guest.run() == ExitCode.HLT
            assert guest.trap().times == times
            assert guest.run() == ExitCode.HLT, "the handler returned"
            assert guest.run(other) == ExitCode.HLT
            assert guest.trap().times == times


def test_a_refused_store_is_no_hit() -> None:
    """The host gets the nested page fault; #DB comes when the store was made."""
    with _guest(f"mov edi, {_AT}\nmov [rdi], eax\nhlt", dr0=_AT, dr7=_enable(0, _WRITE, 4)) as guest:
        guest.permit(FREE, 1)
        assert guest.run() == ExitCode.NPF
        assert (guest.vmcb.exit_int_info, guest.vmsa().dr6) == (0, _DR6)
        guest.permit(FREE, 15)
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE + 7)


def test_a_delivery_that_is_cut_off_is_repeated() -> None:
    with _guest(f"mov edi, {_AT}\nmov [rdi], eax\nhlt", dr0=_AT, dr7=_enable(0, _WRITE, 4)) as guest:
        guest.permit(STACK - PAGE, 0)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_int_info & 0xFF == _DB
        guest.permit(STACK - PAGE, 15)
        guest.vmcb.event_inj = guest.vmcb.exit_int_info
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().times, guest.vmsa().dr6) == (_DB, 1, _DR6 | 1)


# DR6, DR7 and the instructions


@pytest.mark.parametrize("first", [_DR6, _DR6 | _BS | 2])
def test_dr6_tells_of_the_last_hit_and_keeps_its_other_bits(first: int) -> None:
    with _guest("nop\nhlt", dr2=CODE, dr6=first, dr7=_enable(2, _EXECUTE)) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().dr6 == first & ~0xF | 4


def test_single_step_and_a_hit_are_one_trap() -> None:
    with _guest(f"mov [{_AT}], eax\nhlt", dr0=_AT, dr7=_enable(0, _WRITE, 4), rflags=0x302) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().times, guest.vmsa().dr6) == (_DB, 1, _DR6 | _BS | 1)


@pytest.mark.parametrize("code", ["mov rax, dr0", "mov dr6, rax", "mov dr7, rax", "mov rax, dr7"])
def test_general_detect(code: str) -> None:
    with _guest(f"{code}\nhlt", dr7=_DR7 | _GD) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE)
        assert (guest.vmsa().dr6, guest.vmsa().dr7) == (_DR6 | _BD, _DR7), "and the handler may use them"


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("mov dr6, rax", _GP),
        ("mov dr7, rax", _GP),
        ("mov dr0, rax", None),
        ("mov rbx, dr4", None),
        ("mov rbx, cr4\nor rbx, 8\nmov cr4, rbx\nmov rbx, dr4", _UD),
        ("mov rbx, cr4\nor rbx, 8\nmov cr4, rbx\nmov dr5, rbx", _UD),
    ],
)
def test_what_they_take(code: str, vector: int | None) -> None:
    with _guest(f"mov rax, 0x100000000\n{code}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector if guest.trap().times else None) == vector


def test_bits_that_are_not_there() -> None:
    code = "mov eax, -1\nmov dr6, rax\nmov rbx, dr6\nxor eax, eax\nmov dr6, rax\nmov rcx, dr6\n"
    code += "mov eax, 0xffffdf00\nmov dr7, rax\nmov rdx, dr7\nhlt"
    with _guest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert (guest.vmsa().rbx, guest.vmsa().rcx, guest.vmsa().rdx) == (0xFFFFEFFF, _DR6, 0xFFFF0700)


@pytest.mark.parametrize("register", ["dr6", "dr7"])
def test_vmrun_refuses_upper_halves(register: str) -> None:
    with _guest("hlt") as guest:
        _set(guest, **{register: 1 << 32})
        assert guest.run() == ExitCode.INVALID


@pytest.mark.parametrize("bit", range(64))
def test_vmrun_refuses_features_that_the_processor_lacks(bit: int) -> None:
    """An image that counts on one of them would go on without what it protects, or sees."""
    with _guest("hlt") as guest:
        _set(guest, sev_features=1 | 1 << bit)
        assert guest.run() == (ExitCode.HLT if 1 << bit & SUPPORTED_FEATURES else ExitCode.INVALID)


# Whose registers they are


def test_with_debug_swap_they_are_each_contexts_own() -> None:
    code = "mov rax, dr0\nmov rbx, dr3\nmov dr0, rdi\nhlt\n"
    with _guest(code, dr0=0x1000, dr3=0x4000, rdi=0x1111) as guest:
        other = guest.make_context(0xE000, vmpl=3)
        _set(guest, 0xE000, sev_features=int(SevFeatures.SNP | SevFeatures.DEBUG_SWAP), dr0=0x2000, rdi=0x2222)
        assert guest.run() == ExitCode.HLT
        assert guest.run(other) == ExitCode.HLT
        first, second = guest.vmsa(), guest.vmsa(0xE000)
        assert (first.rax, first.rbx, first.dr0, first.dr3) == (0x1000, 0x4000, 0x1111, 0x4000)
        assert (second.rax, second.rbx, second.dr0) == (0x2000, 0, 0x2222)


def test_without_it_they_are_whoevers_came_before() -> None:
    """A VMSA's DR0 to DR3 are left alone; nothing keeps one context's from the next one."""
    with _guest("mov rax, dr0\nmov dr0, rdi\nhlt\n", swap=False, dr0=0x1000, rdi=0x1111) as guest:
        other = guest.make_context(0xE000, vmpl=3)
        assert guest.run() == ExitCode.HLT
        assert guest.run(other) == ExitCode.HLT
        assert (guest.vmsa().rax, guest.vmsa().dr0, guest.vmsa(0xE000).rax) == (0, 0x1000, 0x1111)


def test_a_context_with_debug_swap_leaves_the_others_as_they_were() -> None:
    with _guest("mov dr0, rdi\nhlt\n", rdi=0x1111) as guest:
        other = guest.make_context(0xE000, vmpl=3)
        guest.put("mov rax, dr0\nhlt", CODE + PAGE)
        _set(guest, 0xE000, rip=CODE + PAGE)
        assert guest.run() == ExitCode.HLT
        assert guest.run(other) == ExitCode.HLT
        assert guest.vmsa(0xE000).rax == 0


@pytest.mark.parametrize("code", ["mov rax, dr7", "mov dr7, rax"])
@pytest.mark.parametrize("swap", [True, False])
def test_dr7_is_intercepted_without_it(code: str, swap: bool) -> None:
    with _guest(f"{code}\nhlt", swap=swap) as guest:
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.error_code) == ((0, 0) if swap else (_VC, 0x27 if "rax, dr7" in code else 0x37))


def test_registers_of_a_vmsa_hold_without_it() -> None:
    """DR7 is the VMSA's always: what a monitor puts there is enabled, with the addresses that the core has."""
    with _guest("mov dr0, rdi\nhlt\nnop\nhlt", swap=False) as guest:
        _set(guest, rdi=CODE + 4)
        assert guest.run() == ExitCode.HLT
        _set(guest, dr7=_enable(0, _EXECUTE))
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE + 4)


def test_in_user_mode() -> None:
    with _guest("nop\ninc eax\nhlt", cpl=3, dr0=CODE + 1, dr7=_enable(0, _EXECUTE)) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE + 1)


# A debugger at the same time


def test_a_debuggers_step_and_the_guests_own_breakpoints() -> None:
    code = f"mov edi, {_AT}\nmov [rdi], eax\nnop\nhlt"
    with _guest(code, dr0=_AT, dr1=CODE + 7, dr7=_enable(0, _WRITE, 4) | _enable(1, _EXECUTE)) as guest:
        guest.machine.set_single_step(True)
        for _ in range(2):
            assert guest.run() == ExitCode.INTR
        handler = guest.vmsa().rip
        assert handler != CODE + 7, "the store, and its trap"
        assert guest.vmsa().dr6 == _DR6 | 1
        guest.machine.set_single_step(False)
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_DB, 0, CODE + 7, 1)
        guest.machine.set_single_step(True)
        assert guest.run() == ExitCode.INTR
        assert guest.vmsa().rip == CODE + 7
        assert guest.run() == ExitCode.INTR
        assert (guest.vmsa().rip, guest.vmsa().dr6) == (handler, _DR6 | 2)


def test_a_debugger_has_its_breakpoint_first() -> None:
    with _guest("nop\nhlt", dr0=CODE, dr7=_enable(0, _EXECUTE)) as guest:
        guest.machine.set_breakpoints([CODE])
        assert guest.run() == ExitCode.INTR
        stop = guest.machine.debug_stop()
        assert stop is not None
        assert (stop.reason, guest.vmsa().rip, guest.vmsa().dr6) == (StopReason.BREAKPOINT, CODE, _DR6)
        guest.machine.set_breakpoints([])
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_DB, 0, CODE, 1)


def test_a_debuggers_watchpoint_on_the_same_bytes() -> None:
    with _guest(f"mov [{_AT}], eax\nhlt", dr0=_AT, dr7=_enable(0, _WRITE, 4)) as guest:
        guest.machine.set_watchpoints([Watchpoint(_AT, 4, WatchKind.WRITE)])
        assert guest.run() == ExitCode.INTR
        assert guest.machine.debug_stop() == (StopReason.WATCHPOINT, _AT)
        guest.machine.set_watchpoints([])
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == _DB


# Single steps


@pytest.mark.parametrize(
    "code",
    [
        "nop",
        "pause",
        "hlt",
        "mov eax, 0x100000\nxor ecx, ecx\nmov edx, 1\npvalidate",
        "mov eax, 0x100000\nxor ecx, ecx\nxor edx, edx\nrmpquery",
        "xor eax, eax\nmov dr0, rax",
    ],
)
def test_a_single_step_ends_behind_each_instruction(code: str) -> None:
    """HLT's trap ends the halt at once. (PAUSE and the instructions of SNP took the next one with them.)"""
    lines = code.split("\n")
    with _guest(f"{code}\nnop\nhlt", rflags=0x300 | 2) as guest:
        at = CODE
        for number, line in enumerate(lines, 1):
            at += _length(line)
            assert guest.run() == ExitCode.HLT
            assert guest.trap() == (_DB, 0, at, number)
            assert guest.vmsa().dr6 == _DR6 | _BS


@pytest.mark.parametrize("code", ["pause", "nop"])
def test_a_debuggers_step_is_one_instruction(code: str) -> None:
    with _guest(f"{code}\nnop\nhlt") as guest:
        guest.machine.set_single_step(True)
        assert guest.run() == ExitCode.INTR
        assert guest.vmsa().rip == CODE + _length(code)


def test_the_traps_page_is_where_it_was() -> None:
    """A guard of this file's own: the handlers' notes are not on a page that is watched above."""
    assert TRAPS // PAGE not in {_AT // PAGE, (STACK - 8) // PAGE}
    assert Vmsa.dr0.offset == 0x180


@pytest.mark.parametrize(
    ("handler", "kind"),
    [("nop", _EXECUTE), (f"mov rax, [{FREE}]", _ACCESS), (f"mov ss, [{FREE}]\nmov ss, [{FREE}]", _ACCESS)],
)
def test_a_handler_that_meets_its_own_breakpoint_without_end_does_not_keep_the_core(handler: str, kind: int) -> None:
    """Each #DB begins on the same stack (IST), so no fault ends this."""
    at = FREE + PAGE
    watched = at if kind == _EXECUTE else FREE
    with _guest("int1\nhlt", dr0=watched, dr7=_enable(0, kind, 1 if kind == _EXECUTE else 8)) as guest:
        guest.put(f"{handler}\nhlt", at)
        guest.top.write_u64(FREE, 0x10)
        guest.top.write_u64(guest.vmsa().tr.base + 36, STACK)
        guest.top.write(IDT + 16 * _DB, struct.pack("<HHBBHII", at & 0xFFFF, 8, 1, 0xEE, at >> 16, 0, 0))
        for _ in range(3):
            assert guest.run(deadline_ns=time.monotonic_ns() + 2_000_000) == ExitCode.INTR
        assert guest.vmsa().rsp <= STACK
