# SPDX-License-Identifier: GPL-2.0-or-later
"""What leaves the guest, what becomes #VC or #GP in it, and what needs neither; kinds of access, and page tables."""

from __future__ import annotations

import time

import pytest

from tests.small_guest import CODE, FREE, PAGE, STACK, VMSA, SmallGuest
from veil.snp import EntryFlag, ExitCode, Permission, RmpResult
from veil.snp.layouts import V_IGN_TPR, V_IRQ, Vmsa

_VC, _GP = 29, 13
_WRITE, _FETCH = 1 << 1, 1 << 4
_PRESENT_USER = 1 << 0 | 1 << 2
_RMP, _FINAL, _TABLE, _ENC, _VMPL = (1 << bit for bit in (31, 32, 33, 34, 36))
_TABLES = {"PML4": 0x1000, "PDPT": 0x2000, "PD": 0x3000, "PT": 0x4000}


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("lea rax, [rsp]\nxor ecx, ecx\nxor edx, edx\nmonitor", 0x8A), ("xor ecx, ecx\nmwait", 0x8B), ("invd", 0x76)],
    ids=["MONITOR", "MWAIT", "INVD"],
)
def test_more_instructions_are_vc(code: str, exit_code: int) -> None:
    with SmallGuest(f"{code}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().error_code, guest.trap().times) == (_VC, exit_code, 1)


def test_cpuid_is_vc_in_user_code_too() -> None:
    with SmallGuest("xor eax, eax\ncpuid\nint 0x20", cpl=3) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:3] == (_VC, 0x72, CODE + 2)


@pytest.mark.parametrize("code", ["xor ecx, ecx\nrdmsr", "xor ecx, ecx\nwrmsr", "wbinvd", "hlt", "mov rax, dr7", "cli"])
def test_privileged_instructions_in_user_code_are_gp(code: str) -> None:
    # The privilege check comes before the intercept.
    with SmallGuest(f"{code}\nint 0x20", cpl=3) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_GP, 0)


@pytest.mark.parametrize("code", ["in al, 0x60", "out 0x60, eax", "mov dx, 0x3f8\nin ax, dx"])
def test_ports_in_user_code_need_iopl(code: str) -> None:
    with SmallGuest(f"{code}\nint 0x20", cpl=3) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_GP, 0)
    with SmallGuest(f"{code}\nint 0x20", cpl=3) as guest:
        guest.top.write_u64(VMSA + Vmsa.rflags.offset, 0x3202)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_VC, 0x7B)


@pytest.mark.parametrize("code", ["rep outsb", "rep insb", "outsd"])
def test_string_port_instructions_are_vc_before_anything_moves(code: str) -> None:
    with SmallGuest(f"mov rsi, {FREE}\nmov rdi, {FREE}\nmov ecx, 5\nmov dx, 0x3f8\n{code}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_VC, 0x7B)
        vmsa = guest.vmsa()
        assert (vmsa.rsi, vmsa.rdi, vmsa.rcx) == (FREE, FREE, 5)


def test_the_handler_of_vc_goes_on_behind_the_instruction() -> None:
    # As Linux does it: advance RIP in the frame, set registers, return.
    with SmallGuest("mov eax, 1\ncpuid\nmov ebx, eax\nhlt") as guest:
        guest.put("add qword ptr [rsp + 8], 2\nadd rsp, 8\nmov eax, 0x77\niretq", 0xA000 + 16 * _VC)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rbx == 0x77
        assert guest.vmsa().rsp == STACK


def test_pause_exits_when_the_host_wants_it() -> None:
    with SmallGuest("pause\npause\npause\npause\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
    with SmallGuest("pause\npause\npause\npause\nhlt") as guest:
        guest.machine.set_pause_limit(3)
        assert guest.run() == ExitCode.PAUSE
        assert guest.vmsa().rip == CODE + 6
        assert guest.run() == ExitCode.HLT


def _pend(guest: SmallGuest, vector: int) -> None:
    guest.vmcb.v_intr = V_IRQ | V_IGN_TPR
    guest.vmcb.v_intr |= vector << 32


def test_halt_with_an_interrupt_pending_takes_it() -> None:
    with SmallGuest("sti\nhlt\nmov rbx, 1\nhlt") as guest:
        guest.top.write_u64(VMSA + Vmsa.rflags.offset, 2)
        _pend(guest, 0x22)
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (0x22, CODE + 2)


def test_an_interrupt_stays_pending_while_interrupts_are_off() -> None:
    with SmallGuest("hlt\nsti\nnop\nnop\nhlt") as guest:
        guest.top.write_u64(VMSA + Vmsa.rflags.offset, 2)
        _pend(guest, 0x22)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert guest.vmcb.v_intr & V_IRQ
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x22


def test_the_shadow_of_sti_survives_an_exit() -> None:
    # The instruction after STI exits: the interrupt comes after that instruction, not before it.
    with SmallGuest(f"sti\nmov rax, [{FREE}]\nmov rbx, 1\nhlt") as guest:
        guest.top.write_u64(VMSA + Vmsa.rflags.offset, 2)
        _pend(guest, 0x22)
        guest.permit(FREE, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.interrupt_shadow & 1
        guest.permit(FREE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x22
        assert guest.trap().rip > CODE + 1


@pytest.mark.parametrize(
    ("event", "vector"), [(2 << 8 | 2, 2), (3 << 8 | 6, 6), (0x30, 0x30)], ids=["NMI", "#UD", "interrupt"]
)
def test_injected_events(event: int, vector: int) -> None:
    with SmallGuest("mov rbx, 1\nhlt") as guest:
        guest.vmcb.event_inj = 1 << 31 | event
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (vector, 0, CODE, 1)
        assert guest.vmcb.event_inj == 0


@pytest.mark.parametrize(
    "loop",
    [
        "1: jmp 1b",
        "1: mov ecx, 1000\n2: loop 2b\njmp 1b",
        f"1: mov rdi, {FREE}\nmov ecx, 4096\nrep stosb\njmp 1b",
        "1: rdtsc\njmp 1b",
        "1: pause\njmp 1b",
    ],
    ids=["jmp", "loop", "rep", "rdtsc", "pause"],
)
def test_every_loop_ends_at_the_deadline(loop: str) -> None:
    with SmallGuest(loop) as guest:
        for _ in range(3):
            assert guest.run(deadline_ns=time.monotonic_ns() + 2_000_000) == ExitCode.INTR
        assert guest.trap().times == 0


def test_a_deadline_that_is_over_leaves_the_guest_whole() -> None:
    with SmallGuest("mov rbx, 1\nhlt") as guest:
        assert guest.run(deadline_ns=1) == ExitCode.INTR
        assert guest.vmsa().rip == CODE
        assert guest.run() == ExitCode.HLT


@pytest.mark.parametrize("priority", range(16))
def test_cr8_holds_interrupts_back(priority: int) -> None:
    """V_IRQ waits until V_INTR_PRIO is above CR8, which the guest lowers by MOV; HLT does not wait for it."""
    code = (
        f"mov eax, 5\nmov cr8, rax\nsti\nnop\nnop\nmov ebx, 1\nhlt\nmov eax, {max(priority - 1, 0)}\nmov cr8, rax\nhlt"
    )
    with SmallGuest(code) as guest:
        guest.top.write_u64(VMSA + Vmsa.rflags.offset, 2)
        guest.vmcb.v_intr = V_IRQ | priority << 16 | 0x22 << 32
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == (priority > 5)
        assert guest.vmsa().rbx == (priority <= 5)
        if priority <= 5:
            assert guest.run() == ExitCode.HLT
            assert guest.trap().times == (priority > 0)


def test_task_priority_is_the_contexts_own() -> None:
    with SmallGuest("mov eax, 5\nmov cr8, rax\nhlt\nmov rbx, cr8\nhlt") as guest:
        other = guest.make_context(FREE, vmpl=3, rip=FREE + PAGE)
        guest.put("mov rbx, cr8\nhlt", FREE + PAGE)
        assert guest.run() == ExitCode.HLT
        assert guest.vmcb.v_intr & 0xFF == 5
        assert guest.run(other) == ExitCode.HLT
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert (guest.vmsa(FREE).rbx, guest.vmsa().rbx) == (0, 5)


# Double faults: #VC is taken as contributory, which is not checked against the APM (docs/fidelity.md)


def test_a_vc_in_the_delivery_of_a_page_fault_is_a_double_fault() -> None:
    with SmallGuest("mov rsp, 0x101000\nmov rbx, 0x7f0000000000\nmov rax, [rbx]\nhlt") as guest:
        # The stack is not validated; the double fault has one of its own.
        guest.invalidate(0x100000)
        guest.top.write_u64(0xC000 + 0x24, FREE + 8 * PAGE)
        guest.top.write_u8(0x8000 + 16 * 8 + 4, 1)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (8, 0)
        assert guest.trap().times == 1


def test_a_page_fault_in_the_delivery_of_a_vc_is_a_page_fault() -> None:
    with SmallGuest("mov rsp, 0x7f0000000000\nmov eax, 1\ncpuid\nhlt") as guest:
        guest.top.write_u64(0xC000 + 0x24, FREE + 8 * PAGE)
        guest.top.write_u8(0x8000 + 16 * 14 + 4, 1)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (14, 2)


# Every kind of access, from both rings, and page tables of every level


@pytest.mark.parametrize(
    ("code", "needed", "bits"),
    [
        (f"mov rax, [{FREE}]", Permission.R, 0),
        (f"mov qword ptr [{FREE}], 7", Permission.W, _WRITE),
        (f"mov rax, {FREE}\ncall rax", Permission.UX, _FETCH),
        (f"lock add qword ptr [{FREE}], 1", Permission.W, _WRITE),
        (f"mov rsi, {FREE}\nmov rdi, {FREE + PAGE}\nmovsb", Permission.R, 0),
        (f"mov rsp, {FREE + PAGE}\npush rax\nmov rsp, {FREE + 8 * PAGE}", Permission.W, _WRITE),
        (f"movups xmm0, [{FREE}]", Permission.R, 0),
        (f"fxsave [{FREE}]", Permission.W, _WRITE),
    ],
    ids=["read", "write", "execute", "locked", "string", "push", "sse", "fxsave"],
)
@pytest.mark.parametrize("cpl", [0, 3])
def test_every_kind_of_access_is_checked(code: str, needed: Permission, bits: int, cpl: int) -> None:
    if needed == Permission.UX and not cpl:
        needed = Permission.SX
    with SmallGuest(f"{code}\nint 0x20", cpl=cpl) as guest:
        guest.top.write(FREE, b"\xc3")
        before = guest.top.read(FREE, PAGE)
        guest.permit(FREE, Permission.ALL & ~needed)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _RMP | _ENC | _VMPL | _FINAL | _PRESENT_USER | bits
        assert guest.vmcb.exit_info_2 & ~0xFFF == FREE
        assert guest.top.read(FREE, PAGE) == before
        assert guest.trap().times == 0
        # The same code, without the protection.
        guest.permit(FREE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x20


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("name", sorted(_TABLES))
def test_page_tables_of_every_level_are_checked(name: str, cpl: int) -> None:
    table = _TABLES[name]
    with SmallGuest("nop\nint 0x20", cpl=cpl) as guest:
        guest.permit(table, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_TABLE | _FINAL | _VMPL | _WRITE) == _TABLE | _VMPL
        assert guest.vmcb.exit_info_2 & ~0xFFF == table
        # Accessed bits are writes.
        guest.permit(table, Permission.R)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_TABLE | _FINAL | _VMPL | _WRITE) == _TABLE | _VMPL | _WRITE
        guest.permit(table, Permission.R | Permission.W)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x20


@pytest.mark.parametrize("name", sorted(_TABLES))
def test_a_page_table_of_the_hosts_is_no_way_in(name: str) -> None:
    table = _TABLES[name]
    with SmallGuest("hlt") as guest:
        content = guest.top.read(table, PAGE)
        guest.invalidate(table)
        guest.share(table)
        # The walk reads tables as private memory, whatever the host writes there.
        guest.host.write(table, content)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_TABLE | _RMP | _ENC | _VMPL) == _TABLE | _RMP | _ENC


def test_a_page_table_that_is_not_validated_ends_the_guest() -> None:
    # Delivering the #VC that tells so needs the same table: double fault, triple fault.
    with SmallGuest("hlt") as guest:
        guest.invalidate(_TABLES["PD"])
        assert guest.run() == ExitCode.SHUTDOWN


def test_an_unvalidated_page_and_its_counter_test() -> None:
    with SmallGuest(f"mov rax, {FREE}\nmov qword ptr [rax], 7\nhlt") as guest:
        guest.invalidate(FREE)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_VC, 0x404)
        guest.top.pvalidate(FREE)
        guest.top.write_u64(VMSA + Vmsa.rip.offset, CODE)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 1
        assert guest.top.read_u64(FREE) == 7


def test_a_page_that_the_host_took_and_gave_back_is_noticed() -> None:
    with SmallGuest(f"mov rax, [{FREE}]\nhlt") as guest:
        guest.top.write_u64(FREE, 0x5EC2E7)
        assert guest.host.rmpupdate(FREE, assigned=False) == RmpResult.SUCCESS
        assert guest.host.rmpupdate(FREE, assigned=True) == RmpResult.SUCCESS
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_VC, 0x404)
        # Validated a second time it would get through, which is why guests and monitors must never do that.
        guest.top.pvalidate(FREE)
        guest.permit(FREE, Permission.ALL)
        guest.top.write_u64(VMSA + Vmsa.rip.offset, CODE)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 1


def test_an_idle_vmsa_is_protected_by_its_permissions_alone() -> None:
    # Which is why a monitor revokes them before it makes a VMSA.
    other = FREE + PAGE
    with SmallGuest(f"mov qword ptr [{other + Vmsa.rax.offset}], 7\nhlt") as guest:
        guest.make_context(other, vmpl=3)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & _VMPL
        assert guest.top.rmpadjust(other, vmpl=3, permissions=Permission.ALL, vmsa=True) == RmpResult.SUCCESS
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa(other).rax == 7
        assert guest.machine.rmp.entry(other)["flags"] & EntryFlag.VMSA
