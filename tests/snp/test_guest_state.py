# SPDX-License-Identifier: GPL-2.0-or-later
"""A VCPU context is its VMSA: what goes in comes out, and nothing of one context is in another."""

from __future__ import annotations

import ctypes
import random

import pytest

from tests.small_guest import CODE, FREE, PAGE, STACK, VMSA, SmallGuest
from veil.snp import ExitCode, Permission
from veil.snp.layouts import Vmsa, VmsaSegment

_REGISTERS = (*("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),)
_POINTERS = ("kernel_gs_base", "lstar", "cstar", "sysenter_esp", "sysenter_eip", "cr2")
_EXIT = (*("exit_info_1", "exit_info_2", "exit_int_info", "nrip", "guest_exit_code", "rip"),)


def _randomize(guest: SmallGuest, seed: int) -> Vmsa:
    rng = random.Random(seed)
    vmsa = guest.vmsa()
    for name in _REGISTERS:
        setattr(vmsa, name, rng.getrandbits(64))
    for name in _POINTERS:
        setattr(vmsa, name, rng.getrandbits(47))
    vmsa.star, vmsa.sfmask, vmsa.sysenter_cs = rng.getrandbits(64), rng.getrandbits(18), rng.getrandbits(16)
    vmsa.fs.base, vmsa.gs.base = rng.getrandbits(47), rng.getrandbits(47)
    vmsa.ds.limit, vmsa.es.selector = rng.getrandbits(32), 0x33
    vmsa.tsc_aux, vmsa.spec_ctrl, vmsa.dbgctl = rng.getrandbits(32), 1, 1
    vmsa.rflags = 2 | rng.choice((0, 0x200)) | rng.getrandbits(12) & 0xCD5 | rng.choice((0, 0x200000))
    vmsa.dr6 = 0xFFFF0FF0 | rng.getrandbits(4)
    vmsa.mxcsr = 0x1F80 | rng.getrandbits(2) << 13
    vmsa.x87_fcw, vmsa.x87_fsw, vmsa.x87_ftw = 0x37F, rng.randrange(8) << 11 | 0x4700 & ~0x3800, 0xC0F3
    vmsa.x87_fop, vmsa.x87_rip, vmsa.x87_dp = rng.getrandbits(11), rng.getrandbits(32), rng.getrandbits(32)
    for field, size in (("fpreg_x87", 80), ("fpreg_xmm", 256), ("fpreg_ymm", 256)):
        ctypes.memmove(ctypes.addressof(getattr(vmsa, field)), rng.randbytes(size), size)
    guest.top.write(VMSA, bytes(vmsa))
    return vmsa


def _differences(before: Vmsa, after: Vmsa) -> dict[str, tuple[object, object]]:
    """Fields of the two that are not equal, exit information aside."""
    found: dict[str, tuple[object, object]] = {}
    for name, *_ in Vmsa._fields_:
        if name in _EXIT:
            continue
        old, new = getattr(before, name), getattr(after, name)
        old, new = (bytes(value) if not isinstance(value, int) else value for value in (old, new))
        if old != new:
            found[name] = (old, new)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_register_survives_a_run(seed: int) -> None:
    with SmallGuest("hlt") as guest:
        before = _randomize(guest, seed)
        assert guest.run() == ExitCode.HLT
        assert _differences(before, guest.vmsa()) == {}
        assert guest.vmsa().rip == CODE + 1


def test_no_register_of_one_context_is_in_another() -> None:
    with SmallGuest("hlt\nhlt") as guest:
        other = guest.make_context(FREE, vmpl=3)
        untouched = guest.vmsa(FREE)
        before = _randomize(guest, 99)
        assert guest.run() == ExitCode.HLT
        assert guest.run(other) == ExitCode.HLT
        assert _differences(untouched, guest.vmsa(FREE)) == {}
        assert guest.run() == ExitCode.HLT
        assert _differences(before, guest.vmsa()) == {}


def test_what_the_guest_sets_is_in_its_vmsa() -> None:
    code = """
        mov rcx, 0xc0000081
        mov eax, 0x111
        mov edx, 0x222
        wrmsr
        mov rcx, 0xc0000082
        wrmsr
        mov rcx, 0xc0000084
        wrmsr
        mov rcx, 0x176
        wrmsr
        mov rcx, 0xc0000100
        wrmsr
        mov rcx, 0x277
        mov eax, 0x00070106
        mov edx, 0x00070106
        wrmsr
        mov rax, cr4
        or rax, 0x200
        mov cr4, rax
        mov rax, 0x1234
        mov cr2, rax
        mov ax, 0x10
        mov fs, ax
        hlt
    """
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        vmsa = guest.vmsa()
        both = 0x222 << 32 | 0x111
        assert (vmsa.star, vmsa.lstar, vmsa.sysenter_eip) == (both, both, both)
        assert vmsa.sfmask & 0xFFFFFFFF == 0x111
        assert vmsa.g_pat == 0x00070106_00070106
        assert vmsa.cr2 == 0x1234
        assert (vmsa.fs.selector, vmsa.fs.base, vmsa.fs.attrib) == (0x10, 0, 0xC93)
        assert vmsa.efer & 1 << 12


def test_the_monitor_changes_what_the_guest_goes_on_with() -> None:
    # How VeilMon answers a call: registers in the VMSA between two runs.
    with SmallGuest(".byte 0xf3, 0x0f, 0x01, 0xd9\nmov rbx, rax\nhlt") as guest:
        assert guest.run() == ExitCode.VMGEXIT
        guest.top.write_u64(VMSA + Vmsa.rax.offset, 0x8000_0001)
        guest.top.write_u64(VMSA + Vmsa.rip.offset, guest.vmsa().rip)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rbx == 0x8000_0001


def test_a_context_that_changes_its_level_loses_what_it_could_reach() -> None:
    # The TLB knows pages of VMPL 1 when the same VMSA goes on at VMPL 3.
    read = f"mov rax, [{FREE}]\nhlt\nmov rax, [{FREE}]\nhlt"
    with SmallGuest(read, vmpl=1) as guest:
        for gpa in range(0, 4 << 20, PAGE):
            if gpa not in (FREE, VMSA):
                guest.permit(gpa, Permission.ALL, 3)
        assert guest.run() == ExitCode.HLT
        guest.top.write_u8(VMSA + Vmsa.vmpl.offset, 3)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_2 == FREE


def test_syscall_and_sysret_between_the_rings() -> None:
    with SmallGuest("mov rdi, 5\nsyscall\nadd rdi, 1\nint 0x20", cpl=3) as guest:
        guest.put("add rdi, 10\nsysretq", FREE)
        vmsa = guest.vmsa()
        vmsa.star, vmsa.lstar, vmsa.sfmask = 0x0010_0008 << 32, FREE, 0x200
        vmsa.efer |= 1
        guest.top.write(VMSA, bytes(vmsa))
        # STAR's user selectors are 0x10 + 8 for SS and 0x10 + 16 for CS: this guest's own at 0x18 and 0x20.
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x20
        assert guest.vmsa().rdi == 16
        assert guest.vmsa().rcx == CODE + len(b"\x48\xc7\xc7\x05\x00\x00\x00\x0f\x05")


@pytest.mark.parametrize("gpa", [0x8000, 0x9000, 0xC000, STACK - PAGE], ids=["IDT", "GDT", "TSS", "stack"])
@pytest.mark.parametrize("kind", ["software", "#PF", "#VC", "interrupt", "syscall of the host"])
def test_delivery_from_user_code_meets_a_nested_page_fault(gpa: int, kind: str) -> None:
    code, vector, error = {
        "software": ("int 0x30", 0x30, 0),
        "#PF": ("mov rbx, 0x7f0000000000\nmov rax, [rbx]", 14, 4),
        "#VC": ("mov eax, 1\ncpuid", 29, 0x72),
        "interrupt": ("nop\nnop\nint 0x20", 0x21, 0),
        "syscall of the host": ("nop\nint 0x20", 13, 0),
    }[kind]
    with SmallGuest(code, cpl=3) as guest:
        user_stack = FREE + PAGE
        guest.top.write_u64(VMSA + Vmsa.rsp.offset, user_stack)
        if kind == "interrupt":
            guest.vmcb.v_intr = 1 << 8 | 1 << 20
            guest.vmcb.v_intr |= 0x21 << 32
        elif kind == "syscall of the host":
            # What a host injects for a refused request: #GP, type 3, with error code.
            guest.vmcb.event_inj = 1 << 31 | 1 << 11 | 3 << 8 | 13
        guest.permit(gpa, Permission.NONE)
        faults = 0
        while guest.run() == ExitCode.NPF:
            faults += 1
            assert guest.vmcb.exit_info_2 & ~0xFFF == gpa
            assert guest.vmcb.exit_int_info & 0x8000_00FF == 1 << 31 | vector
            vmsa = guest.vmsa()
            assert (vmsa.cpl, vmsa.rsp) == (3, user_stack)
            assert guest.trap().times == 0
            guest.permit(gpa, Permission.ALL)
            guest.vmcb.event_inj = guest.vmcb.exit_int_info
        assert faults == 1
        assert guest.vmcb.exit_code == ExitCode.HLT
        assert guest.trap()[:2] == (vector, error)
        assert guest.trap().times == 1
        assert guest.vmsa().cpl == 0


def test_iret_from_a_stack_that_is_forbidden() -> None:
    code = f"mov rsp, {FREE + 64}\nlea rax, [rip + on]\nmov [{FREE + 64}], rax\n"
    code += f"mov qword ptr [{FREE + 72}], 8\nmov qword ptr [{FREE + 80}], 2\nmov qword ptr [{FREE + 88}], {STACK}\n"
    code += f"mov qword ptr [{FREE + 96}], 0x10\nhlt\niretq\non: mov ebx, 5\nhlt"
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        at = guest.vmsa().rip
        guest.permit(FREE, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert (guest.vmsa().rip, guest.vmsa().rsp) == (at, FREE + 64)
        guest.permit(FREE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().rbx, guest.vmsa().rsp) == (5, STACK)


def test_an_interrupt_stack_table_entry() -> None:
    with SmallGuest("int 0x30") as guest:
        top = FREE + PAGE
        guest.top.write_u64(0xC000 + 0x24, top)
        guest.top.write_u8(0x8000 + 16 * 0x30 + 4, 1)
        guest.permit(FREE, Permission.R)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & 2
        guest.permit(FREE, Permission.ALL)
        guest.vmcb.event_inj = guest.vmcb.exit_int_info
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x30
        assert FREE < guest.vmsa().rsp < top


def test_single_steps_are_debug_exceptions() -> None:
    with SmallGuest("pushfq\nor qword ptr [rsp], 0x100\npopfq\nnop\nmov ebx, 7\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert trap.vector == 1
        assert guest.vmsa().dr6 & 1 << 14


def _start_with_flags(guest: SmallGuest, flags: int) -> None:
    vmsa = guest.vmsa()
    vmsa.rflags |= flags
    guest.top.write(guest.vmcb.vmsa_pa, bytes(vmsa))


def test_a_single_step_ends_with_its_exception() -> None:
    """Its handler is not stepped through, though RFLAGS.TF was set when the context was entered."""
    with SmallGuest("nop\nhlt") as guest:
        _start_with_flags(guest, 0x100)
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (1, 0, CODE + 1, 1)


def test_the_io_privilege_level_is_that_of_now() -> None:
    """Not the one with which the context was entered."""
    down = "push 0x1b\npush rsp\npush 0x202\npush 0x23\nlea rax, [rip + user]\npush rax\niretq"
    with SmallGuest(f"{down}\nuser: cli\nud2") as guest:
        _start_with_flags(guest, 0x3000)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 13


def test_segments_have_the_architectures_attributes() -> None:
    with SmallGuest("hlt") as guest:
        assert guest.run() == ExitCode.HLT
        vmsa = guest.vmsa()
        for name, attrib in (("cs", 0xA9B), ("ss", 0xC93), ("tr", 0x8B), ("ldtr", 0x82)):
            segment: VmsaSegment = getattr(vmsa, name)
            assert segment.attrib == attrib
