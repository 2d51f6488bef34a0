# SPDX-License-Identifier: GPL-2.0-or-later
"""Exits, #VC, interrupts, and events whose delivery meets a nested page fault: each happens exactly once."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from tests.small_guest import CODE, FREE, IDT, PAGE, STACK, VMSA, SmallGuest
from veil.snp import ExitCode, Machine, Permission
from veil.snp.layouts import V_IGN_TPR, V_IRQ, Vmcb

_VC = 29


def _mend_and_go_on(guest: SmallGuest, gpa: int) -> None:
    """What a host does after a nested page fault: restore, and inject again what was being delivered."""
    guest.permit(gpa, Permission.ALL)
    guest.vmcb.event_inj = guest.vmcb.exit_int_info


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("mov eax, 1\ncpuid", 0x72),
        ("in al, 0x60", 0x7B),
        ("mov dx, 0x3f8\nout dx, al", 0x7B),
        ("mov ecx, 0x8b\nrdmsr", 0x7C),
        ("mov ecx, 0x8b\nwrmsr", 0x7C),
        ("xor ecx, ecx\nrdpmc", 0x6F),
        ("wbinvd", 0x89),
        ("mov rax, dr7", 0x27),
        ("mov dr7, rax", 0x37),
        ("vmmcall", 0x81),
    ],
)
def test_vc_has_the_exit_code_and_the_instructions_address(code: str, exit_code: int) -> None:
    *setup, attack = code.split("\n")
    with SmallGuest("\n".join([*setup, "here:", attack, "hlt"])) as guest:
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.error_code, trap.times) == (_VC, exit_code, 1)
        assert CODE <= trap.rip < CODE + 16
        # At the instruction itself, where a handler looks for it.
        assert guest.top.read(trap.rip, 1) != b"\xf4"


def test_msrs_of_the_vmsa_need_no_host() -> None:
    with SmallGuest("mov ecx, 0xc0000102\nmov eax, 5\nmov edx, 6\nwrmsr\nxor eax, eax\nrdmsr\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 5
        assert guest.vmsa().kernel_gs_base == 6 << 32 | 5
        assert guest.trap().times == 0


def test_sev_status_and_the_ghcb_msr() -> None:
    code = "mov ecx, 0xc0010131\nrdmsr\nmov rbx, rax\nmov ecx, 0xc0010130\nmov eax, 0x5002\nwrmsr\nhlt"
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rbx == 0b111
        assert guest.vmcb.ghcb_gpa & 0xFFFFFFFF == 0x5002


def test_vmgexit_goes_to_the_host_with_rip_behind_it() -> None:
    with SmallGuest(".byte 0xf3, 0x0f, 0x01, 0xd9\nhlt") as guest:
        assert guest.run() == ExitCode.VMGEXIT
        assert guest.vmsa().rip == CODE + 4
        assert guest.vmsa().guest_exit_code == ExitCode.VMGEXIT
        assert guest.run() == ExitCode.HLT


def test_a_vmsa_without_svme_is_not_entered() -> None:
    with SmallGuest() as guest:
        efer = guest.vmsa().efer
        guest.top.write_u64(VMSA + 0xD0, efer & ~(1 << 12))
        assert guest.run() == ExitCode.INVALID
        guest.top.write_u64(VMSA + 0xD0, efer)
        assert guest.run() == ExitCode.HLT


def test_triple_fault_is_shutdown() -> None:
    with SmallGuest("lidt [rip + null]\nud2\nnull: .quad 0, 0") as guest:
        assert guest.run() == ExitCode.SHUTDOWN


def test_a_machine_that_is_closed_can_be_kicked() -> None:
    """By a thread that does not know yet; with the engine's memory freed this was a crash."""
    with SmallGuest() as guest:
        machine = guest.machine
    machine.kick()


def test_a_deadline_ends_an_endless_loop() -> None:
    with SmallGuest("1: jmp 1b") as guest:
        start = time.monotonic_ns()
        assert guest.run(deadline_ns=start + 5_000_000) == ExitCode.INTR
        assert guest.vmsa().rip == CODE


def test_an_interrupt_waits_for_if_and_the_shadow_of_sti() -> None:
    with SmallGuest("cli\nnop\nmov rbx, 1\nsti\nmov rbx, 2\nmov rbx, 3\nhlt") as guest:
        guest.vmcb.v_intr = V_IRQ | V_IGN_TPR
        guest.vmcb.v_intr |= 0x21 << 32
        guest.top.write_u64(VMSA + 0x170, 2)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x21
        assert guest.vmsa().rbx == 2
        assert not guest.vmcb.v_intr & V_IRQ


@pytest.mark.parametrize("shadowed", ["nop", "pause", ".byte 0xf3, 0x0f, 0x01, 0xd9"])
def test_the_shadow_of_sti_is_one_instruction_long(shadowed: str) -> None:
    """A loop of STI, PAUSE, CLI would never take an interrupt. (The bytes are VMGEXIT.)"""
    with SmallGuest(f"cli\nsti\n{shadowed}\ncli\nmov rbx, 1\nhlt") as guest:
        guest.vmcb.v_intr = V_IRQ | V_IGN_TPR | 0x21 << 32
        while (exit_code := guest.run()) == ExitCode.VMGEXIT:
            pass
        assert exit_code == ExitCode.HLT
        assert guest.trap().vector == 0x21
        assert guest.vmsa().rbx == 0


@pytest.mark.parametrize("barrier", [IDT, STACK - PAGE], ids=["IDT", "stack"])
@pytest.mark.parametrize("kind", ["software", "breakpoint", "#UD", "#VC", "#PF", "interrupt"])
def test_delivery_that_meets_a_nested_page_fault_is_repeated_once(kind: str, barrier: int) -> None:
    code, vector, error = {
        "software": ("int 0x30\nhlt", 0x30, 0),
        "breakpoint": ("int3\nhlt", 3, 0),
        "#UD": ("ud2\nhlt", 6, 0),
        "#VC": ("mov eax, 1\ncpuid\nhlt", _VC, 0x72),
        "#PF": ("mov rbx, 0x7f0000000000\nmov rax, [rbx]\nhlt", 14, 0),
        "interrupt": ("nop\nnop\nhlt", 0x21, 0),
    }[kind]
    with SmallGuest(code) as guest:
        if kind == "interrupt":
            guest.vmcb.v_intr = V_IRQ | V_IGN_TPR
            guest.vmcb.v_intr |= 0x21 << 32
        guest.permit(barrier, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_2 & ~0xFFF == barrier
        assert guest.vmcb.exit_int_info >> 31 & 1
        assert guest.vmcb.exit_int_info & 0xFF == vector
        assert guest.vmsa().rsp == STACK
        assert guest.trap().times == 0
        _mend_and_go_on(guest, barrier)
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.error_code, trap.times) == (vector, error, 1)


@pytest.mark.parametrize("before", range(1, 16))
def test_a_gate_and_a_task_state_over_two_pages(before: int) -> None:
    """What the core reads itself, in both pages at once, again and again."""
    with SmallGuest("1: int3\njmp 1b", cpl=3) as guest:
        table, task = FREE + PAGE - 3 * 16 - before, FREE + 3 * PAGE - 4 - before % 8
        guest.top.write(table, guest.top.read(IDT, 16 * 4))
        guest.top.write_u64(task + 4, STACK - 0x800)
        vmsa = guest.vmsa()
        vmsa.idtr.base, vmsa.tr.base = table, task
        guest.top.write(VMSA, bytes(vmsa))
        for times in (1, 2, 3):
            assert guest.run() == ExitCode.HLT
            assert guest.trap() == (3, 0, CODE + 1, times)
            assert guest.vmsa().rsp == STACK - 0x800 - 40


def test_a_frame_over_code_that_has_run() -> None:
    """The frame's SS is two instructions and their bytes; behind it is HLT."""
    code = f"""
        lea rax, [rip + 1f]
        mov rbx, {STACK - 8}
        jmp rbx
    1:  int3
        mov rax, {FREE}
        jmp rbx
    """
    with SmallGuest(code) as guest:
        guest.put("jmp rax", STACK - 8)
        guest.put("hlt", STACK)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 1
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rip == STACK + 1


def test_read_modify_write_happens_once() -> None:
    with SmallGuest(f"add qword ptr [{FREE}], 1\nlock xadd qword ptr [{FREE + 8}], rcx\nhlt") as guest:
        guest.top.write_u64(VMSA + 0x308, 1)
        guest.permit(FREE, Permission.R)
        assert guest.run() == ExitCode.NPF
        assert guest.top.read_u64(FREE) == 0
        guest.permit(FREE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.top.read_u64(FREE) == 1
        assert guest.top.read_u64(FREE + 8) == 1


def test_a_store_over_two_pages_is_all_or_nothing() -> None:
    with SmallGuest(f"mov rax, -1\nmov [{FREE + PAGE - 4}], rax\nhlt") as guest:
        guest.permit(FREE + PAGE, Permission.R)
        assert guest.run() == ExitCode.NPF
        assert guest.top.read(FREE + PAGE - 4, 8) == bytes(8)
        guest.permit(FREE + PAGE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.top.read(FREE + PAGE - 4, 8) == b"\xff" * 8


def test_string_instructions_go_on_where_they_stopped() -> None:
    with SmallGuest(f"mov rdi, {FREE}\nmov rcx, {2 * PAGE}\nmov al, 0x5a\nrep stosb\nhlt") as guest:
        guest.permit(FREE + PAGE, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmsa().rcx == PAGE
        assert guest.vmsa().rdi == FREE + PAGE
        guest.permit(FREE + PAGE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.top.read(FREE, 2 * PAGE) == b"\x5a" * 2 * PAGE


# Code that changes

_CALL_TWICE = f"""
    mov rax, {FREE}
    call rax
    mov rbx, rcx
    {{change}}
    mov rax, {FREE}
    call rax
    hlt
"""
_RETURN_1, _RETURN_2 = b"\xb9\x01\x00\x00\x00\xc3", b"\xb9\x02\x00\x00\x00\xc3"
_ALIAS = 0x200000


def _check_changed(guest: SmallGuest) -> None:
    assert (guest.vmsa().rbx, guest.vmsa().rcx) == (1, 2)


def test_self_modified_code_runs_as_last_written() -> None:
    with SmallGuest(_CALL_TWICE.format(change=f"mov byte ptr [{FREE + 1}], 2")) as guest:
        guest.top.write(FREE, _RETURN_1)
        assert guest.run() == ExitCode.HLT
        _check_changed(guest)


def test_code_changed_through_an_alias_runs_as_last_written() -> None:
    # Many times, since the first store may be noticed and later ones forgotten.
    with SmallGuest(
        f"""
        mov r8, 200
        xor r9, r9
    again:
        mov byte ptr [{_ALIAS + 1}], r8b
        mov rax, {FREE}
        call rax
        add r9, rcx
        dec r8
        jnz again
        hlt
        """
    ) as guest:
        entry = 0x5000 + 8 * ((_ALIAS - 0x200000) // PAGE)
        guest.top.write_u64(entry, FREE | 3 | 1 << 51 | 1 << 63)
        guest.top.write(FREE, _RETURN_1)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().r9 == sum(range(1, 201))


def test_code_written_from_outside_runs_as_last_written() -> None:
    with SmallGuest(_CALL_TWICE.format(change="hlt")) as guest:
        guest.top.write(FREE, _RETURN_1)
        assert guest.run() == ExitCode.HLT
        guest.top.write(FREE, _RETURN_2)
        assert guest.run() == ExitCode.HLT
        _check_changed(guest)


def test_code_written_by_another_context_runs_as_last_written() -> None:
    with SmallGuest(_CALL_TWICE.format(change="hlt")) as guest:
        guest.top.write(FREE, _RETURN_1)
        assert guest.run() == ExitCode.HLT
        other_code, other_vmsa = FREE + 4 * PAGE, FREE + 5 * PAGE
        guest.put(f"mov byte ptr [{FREE + 1}], 2\nhlt", other_code)
        other = guest.make_context(other_vmsa, vmpl=3, rip=other_code)
        assert guest.run(other) == ExitCode.HLT
        assert guest.run() == ExitCode.HLT
        _check_changed(guest)


# State


def test_two_contexts_do_not_mix() -> None:
    with SmallGuest("mov rbx, 1\nmovq xmm3, rbx\nhlt\nmovq rdx, xmm3\nhlt") as guest:
        other = guest.make_context(FREE + PAGE, vmpl=1, rip=FREE)
        for gpa in (FREE, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000):
            guest.permit(gpa, Permission.ALL, 1)
        guest.put("mov rbx, 9\nmovq xmm3, rbx\nhlt", FREE)
        assert guest.run() == ExitCode.HLT
        assert guest.run(other) == ExitCode.HLT
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rdx == 1
        assert guest.vmsa(FREE + PAGE).rbx == 9


def test_fpu_and_sse_state_is_in_the_vmsa() -> None:
    text = "fld1\nfldpi\nmov eax, 0x12345678\nmovd xmm15, eax\nstd\nstc\nhlt\ncld\nfaddp\nfistp dword ptr [{}]\nhlt"
    with SmallGuest(text.format(FREE)) as guest:
        assert guest.run() == ExitCode.HLT
        vmsa = guest.vmsa()
        assert bytes(vmsa.fpreg_xmm)[15 * 16 : 15 * 16 + 4] == struct.pack("<I", 0x12345678)
        assert vmsa.x87_fsw >> 11 & 7 == 6
        assert vmsa.rflags & (1 << 10 | 1) == 1 << 10 | 1
        assert guest.run() == ExitCode.HLT
        assert guest.top.read_u32(FREE) == 4


def test_a_snapshot_goes_on_with_the_pending_event(tmp_path: Path) -> None:
    with SmallGuest("nop\nnop\nmov rbx, 5\nhlt") as guest:
        guest.vmcb.v_intr = V_IRQ | V_IGN_TPR
        guest.vmcb.v_intr |= 0x21 << 32
        guest.permit(IDT, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        saved = bytes(guest.vmcb)
        guest.machine.save(tmp_path / "snapshot")
    machine, _ = Machine.restore(tmp_path / "snapshot")
    with machine:
        vmcb = Vmcb.from_buffer_copy(saved)
        top = machine.view(vmpl=0)
        top.rmpadjust(IDT, vmpl=3, permissions=Permission.ALL)
        vmcb.event_inj = vmcb.exit_int_info
        machine.vmrun(vmcb)
        assert vmcb.exit_code == ExitCode.HLT
        assert top.read_u64(0xB000) == 0x21
        machine.vmrun(vmcb)
        assert vmcb.exit_code == ExitCode.HLT
        assert top.read_u64(VMSA + 0x318) == 5


def test_a_vc_that_cannot_be_delivered_is_shutdown() -> None:
    # The IDT is not validated: delivering the #VC that tells so meets the next one, a double fault the third.
    with SmallGuest("mov eax, 1\ncpuid\nhlt") as guest:
        guest.invalidate(IDT)
        assert guest.run(deadline_ns=time.monotonic_ns() + 1_000_000_000) == ExitCode.SHUTDOWN
        assert guest.trap().times == 0
