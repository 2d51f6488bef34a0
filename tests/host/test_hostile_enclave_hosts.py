# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host can try on a context of VMPL 2: it calls VMRUN itself, with any VMCB, at any instruction."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.enclave_guest import RESTRICTED, SHARED_DATA, SNP, VMGEXIT, EnclaveGuest, enter
from tests.small_guest import PAGE
from veil.snp import ExitCode, Permission, RmpResult, RmpViolation
from veil.snp.layouts import EVENT_VALID, Vmcb, Vmsa, VmsaSegment

_EXTERNAL, _NMI, _EXCEPTION, _SOFTWARE = 0 << 8, 2 << 8, 3 << 8, 4 << 8
_ERROR_CODE = 1 << 11
_IF = 1 << 9

#: #VC with CPUID's error code, #PF, #UD, #GP, #DB, `int 0x80` three ways, NMI, #HV that is no exception
_EVENTS = {
    "#VC": 29 | _EXCEPTION | _ERROR_CODE | 0x72 << 32,
    "#PF": 14 | _EXCEPTION | _ERROR_CODE | 4 << 32,
    "#UD": 6 | _EXCEPTION,
    "#GP": 13 | _EXCEPTION | _ERROR_CODE,
    "#DB": 1 | _EXCEPTION,
    "int 0x80 as software interrupt": 0x80 | _SOFTWARE,
    "int 0x80 as external interrupt": 0x80 | _EXTERNAL,
    "int 0x80 as exception": 0x80 | _EXCEPTION,
    "NMI": 2 | _NMI,
    "#HV as external interrupt": 28 | _EXTERNAL,
    "#HV as software interrupt": 28 | _SOFTWARE,
    "#HV with an error code": 28 | _EXCEPTION | _ERROR_CODE,
}
#: The handler notes vector and RIP, and leaves.
_HANDLER = f"""
handler:
    push rax
    mov rax, [rsp + 8]
    mov [{SHARED_DATA}], rax
    mov rax, [rsp + 24]
    mov [{SHARED_DATA + 8}], rax
    {VMGEXIT}
"""
_PROGRAM = f"mov rbx, 1\ninc rbx\npush rbx\npop rcx\n{VMGEXIT}"
#: where the instructions of _PROGRAM begin
_INSTRUCTIONS = (0, 7, 10, 11, 12)


@pytest.fixture
def guest() -> Iterator[EnclaveGuest]:
    with EnclaveGuest("nop", _PROGRAM + _HANDLER) as guest:
        yield guest


def own_vmcb(guest: EnclaveGuest, **fields: int) -> Vmcb:
    """A VMCB that the host makes up for the enclave."""
    vmcb = Vmcb(vmsa_pa=guest.vmsa_of(0))
    for name, value in fields.items():
        setattr(vmcb, name, value)
    return vmcb


def set_registers(guest: EnclaveGuest, **values: int) -> None:
    for name, value in values.items():
        guest.top.write_u64(guest.vmsa_of(0) + getattr(Vmsa, name).offset, value)


@pytest.mark.parametrize("at", _INSTRUCTIONS)
@pytest.mark.parametrize("event", _EVENTS.values(), ids=_EVENTS)
def test_injected_events_are_refused_at_each_instruction(guest: EnclaveGuest, event: int, at: int) -> None:
    set_registers(guest, rip=guest.code_of(0) + at)
    before = bytes(guest.registers(0))
    vmcb = own_vmcb(guest, event_inj=event | EVENT_VALID, nrip=guest.code_of(0) + 0x100)
    assert guest.run(vmcb) == ExitCode.INVALID
    assert bytes(guest.registers(0)) == before
    vmcb.event_inj = 0
    assert guest.run(vmcb) == ExitCode.VMGEXIT
    assert guest.data(0) == 0, "no handler ran"


@pytest.mark.parametrize("at", _INSTRUCTIONS)
@pytest.mark.parametrize("event", ["#VC", "#PF", "#UD", "int 0x80 as software interrupt"])
def test_without_restricted_injection_they_would_arrive(guest: EnclaveGuest, event: str, at: int) -> None:
    """The counter-test: the enclave's handler cannot tell from vector and RIP alone that nothing happened."""
    set_registers(guest, rip=guest.code_of(0) + at, sev_features=int(SNP))
    vmcb = own_vmcb(guest, event_inj=_EVENTS[event] | EVENT_VALID, nrip=guest.code_of(0) + at)
    assert guest.run(vmcb) == ExitCode.VMGEXIT
    assert (guest.data(0), guest.data(1)) == (_EVENTS[event] & 0xFF, guest.code_of(0) + at)


@pytest.mark.parametrize("restricted", [True, False])
def test_a_queued_interrupt(guest: EnclaveGuest, restricted: bool) -> None:
    """V_IRQ, whatever the enclave's RFLAGS.IF."""
    set_registers(guest, rflags=_IF | 2, sev_features=int(SNP | RESTRICTED) if restricted else int(SNP))
    vmcb = own_vmcb(guest, v_intr=1 << 8 | 1 << 20 | 0x80 << 32)
    assert guest.run(vmcb) == ExitCode.VMGEXIT
    assert guest.data(0) == (0 if restricted else 0x80)


def test_hv_arrives_at_its_own_gate(guest: EnclaveGuest) -> None:
    """The one event that is left to the host; no honest one sends it to an enclave."""
    vmcb = own_vmcb(guest, event_inj=28 | _EXCEPTION | EVENT_VALID)
    assert guest.run(vmcb) == ExitCode.VMGEXIT
    assert (guest.data(0), guest.data(1)) == (28, guest.code_of(0))


def test_nothing_in_the_vmcb_steers(guest: EnclaveGuest) -> None:
    """Entry point, stack, flags and the way out are the VMSA's: any VMCB leads to where the enclave was."""
    numbers = random.Random(1)
    for _ in range(200):
        set_registers(guest, rip=guest.code_of(0), rbx=0, rcx=0)
        rsp = guest.registers(0).rsp
        vmcb = Vmcb.from_buffer_copy(numbers.randbytes(0x400))
        vmcb.vmsa_pa, vmcb.event_inj = guest.vmsa_of(0), numbers.getrandbits(31)
        assert guest.run(vmcb) == ExitCode.VMGEXIT
        registers = guest.registers(0)
        assert (registers.rip, registers.rbx, registers.rcx) == (guest.code_of(0) + 16, 2, 2)
        assert (registers.rsp, registers.cpl, registers.vmpl) == (rsp, 3, 2)
    assert guest.data(0) == 0


def test_a_ghcb_value_that_the_host_changes() -> None:
    """The enclave never reads it: WRMSR and RDMSR are not possible in ring 3, and it has no GHCB page."""
    with EnclaveGuest("nop", f"1: inc rbx\n{VMGEXIT}jmp 1b") as guest:
        for number, value in enumerate((0, 0x17, 1 << 32 | 0x17, 0x100, SHARED_DATA, (1 << 64) - 1)):
            vmcb = own_vmcb(guest, ghcb_gpa=value)
            assert guest.run(vmcb) == ExitCode.VMGEXIT
            assert guest.registers(0).rbx == number + 1
            assert vmcb.ghcb_gpa == value
    for instruction in ("rdmsr", "wrmsr"):
        with EnclaveGuest("nop", f"mov ecx, 0xc0010130\n{instruction}\n{_HANDLER}") as guest:
            assert guest.run(own_vmcb(guest)) == ExitCode.VMGEXIT
            assert guest.data(0) == 13


def test_one_context_by_several_vcpus_in_turn() -> None:
    """All of it is in its VMSA: whoever runs it takes it one step further, and no step is made twice."""
    with EnclaveGuest("nop", f"1: inc qword ptr [{SHARED_DATA}]\n{VMGEXIT}jmp 1b") as guest:
        vmcbs = [own_vmcb(guest) for _ in range(3)]
        numbers = random.Random(1)
        for number in range(100):
            # Some entries are cut off at once.
            deadline = time.monotonic_ns() if numbers.random() < 0.5 else 0
            vmcb = numbers.choice(vmcbs)
            while guest.run(vmcb, deadline_ns=deadline) == ExitCode.INTR:
                deadline = 0
                assert guest.data(0) == number
            assert guest.data(0) == number + 1


def test_the_host_reaches_no_register(guest: EnclaveGuest) -> None:
    vmsa = guest.vmsa_of(0)
    guest.run(own_vmcb(guest))
    assert guest.host.read(vmsa, PAGE) != guest.top.read(vmsa, PAGE), "ciphertext"
    with pytest.raises(RmpViolation):
        guest.host.write(vmsa + Vmsa.rip.offset, b"\0" * 8)
    # Taken away and given back it is no VMSA any more.
    assert guest.host.rmpupdate(vmsa, assigned=False) == RmpResult.SUCCESS
    assert guest.run(own_vmcb(guest)) == ExitCode.INVALID
    guest.host.write(vmsa, bytes(PAGE))
    assert guest.host.rmpupdate(vmsa, assigned=True) == RmpResult.SUCCESS
    assert guest.run(own_vmcb(guest)) == ExitCode.INVALID


@pytest.mark.parametrize(
    ("code", "vector", "at"),
    [("ud2", 6, 0), ("mov rax, [rbx]", 14, 0), ("int 0x80", 0x80, 2), ("mov eax, 0\ncpuid", 29, 5)],
)
def test_an_exception_whose_delivery_the_host_drops(code: str, vector: int, at: int) -> None:
    """It does not give EXITINTINFO back: the instruction is done again and raises it again. `at`: the RIP saved."""
    with EnclaveGuest("nop", f"{code}\n1: jmp 1b\n{_HANDLER}") as guest:
        set_registers(guest, rbx=0x700000000000)
        # The handler's stack is a page that VMPL 2 may not write, for a while.
        page = guest.top.read_u64(guest.registers(0).tr.base + 0x24) & -PAGE
        guest.permit(page, 1, 2)
        vmcb = own_vmcb(guest)
        assert guest.run(vmcb) == ExitCode.NPF
        assert vmcb.exit_int_info & EVENT_VALID
        guest.permit(page, 7, 2)
        assert guest.run(vmcb) == ExitCode.VMGEXIT
        assert (guest.data(0), guest.data(1)) == (vector, guest.code_of(0) + at)


# What a kernel leaves in the registers before it enters an enclave

#: FS and GS of the enclave and of the kernel: what is there says whose they are.
_OWN, _KERNELS = (SHARED_DATA + 0x200, SHARED_DATA + 0x208), (SHARED_DATA + 0x300, SHARED_DATA + 0x308)
_KERNEL_SETS = f"""
    mov ecx, 0xc0000100
    xor edx, edx
    mov eax, {_KERNELS[0]}
    wrmsr
    mov ecx, 0xc0000101
    mov eax, {_KERNELS[1]}
    wrmsr
    mov dword ptr [{SHARED_DATA + 128}], 0x7f80
    ldmxcsr [{SHARED_DATA + 128}]
    mov word ptr [{SHARED_DATA + 136}], 0x77f
    fldcw [{SHARED_DATA + 136}]
    pushfq
    or qword ptr [rsp], 0x40cd5
    popfq
"""
_SEEN = f"""
    pushfq
    pop rax
    mov [{SHARED_DATA}], rax
    stmxcsr [{SHARED_DATA + 8}]
    fnstcw [{SHARED_DATA + 16}]
    mov rax, fs:[0]
    mov [{SHARED_DATA + 24}], rax
    mov rax, gs:[0]
    mov [{SHARED_DATA + 32}], rax
    {VMGEXIT}
"""
_FLAGS = 0x40CD5
"""CF PF AF ZF SF DF OF AC"""


def _stores(vmsa: int) -> str:
    """The same values, by the kernel's stores into a VMSA."""
    base = VmsaSegment.base.offset  # type: ignore[attr-defined]
    values = [
        (Vmsa.rflags.offset, "rax", 2 | _FLAGS), (Vmsa.mxcsr.offset, "eax", 0x7F80), (Vmsa.x87_fcw.offset, "ax", 0x77F),
        (Vmsa.fs.offset + base, "rax", _KERNELS[0]), (Vmsa.gs.offset + base, "rax", _KERNELS[1]),
    ]  # fmt: skip
    return "".join(
        f"mov {register}, {value}\nmov [{vmsa + offset}], {register}\n" for offset, register, value in values
    )


@pytest.mark.parametrize("protected", [True, False])
def test_what_the_kernel_leaves_in_registers(protected: bool) -> None:
    """Flags (direction, alignment check), MXCSR, x87 control word, FS and GS: an enclave begins with its own, which are
    in its VMSA.

    The counter-test: a VMSA that the kernel can write, and writes. Loads through FS and GS go where the kernel says.
    """
    vmsa, bases = EnclaveGuest.vmsa_of(0), _OWN if protected else _KERNELS
    stores = "" if protected else _stores(vmsa)
    with EnclaveGuest(_KERNEL_SETS + stores + enter(0), _SEEN + _HANDLER) as guest:
        for whose, pair in enumerate((_OWN, _KERNELS)):
            for number, base in enumerate(pair):
                guest.top.write_u64(base, 10 * (whose + 1) + number)
        registers = guest.registers(0)
        registers.rflags, registers.fs.base, registers.gs.base = 2, *_OWN
        guest.top.write(vmsa, bytes(registers))
        rights = Permission.NONE if protected else Permission.ALL
        assert guest.top.rmpadjust(vmsa, vmpl=3, permissions=rights, vmsa=True) == RmpResult.SUCCESS
        guest.go()
        seen = guest.data(0) & _FLAGS, guest.data(1) & 0xFFFFFFFF, guest.data(2) & 0xFFFF
        assert seen == ((0, 0x1F80, 0x37F) if protected else (_FLAGS, 0x7F80, 0x77F))
        assert (guest.data(3), guest.data(4)) == ((10, 11) if protected else (20, 21))
        after = guest.registers(0)
        assert (after.fs.base, after.gs.base) == bases
        kernel = guest.vmsa()
        # And the kernel finds its own again.
        assert (kernel.mxcsr, kernel.x87_fcw, kernel.fs.base, kernel.gs.base) == (0x7F80, 0x77F, *_KERNELS)
