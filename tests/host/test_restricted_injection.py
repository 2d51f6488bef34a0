# SPDX-License-Identifier: GPL-2.0-or-later
"""Restricted injection: a monitor of machine code registers a doorbell page and hears of its interrupts by #HV."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from tests.host.fakes import OK, PAGE, SHARED, VMSA, Guest, malformed
from veil.bare_metal import assemble
from veil.formats.ghcb import DoorbellRequest, GhcbReason, HypervisorFeatures, NaeEvent
from veil.formats.launch_digest import PageType
from veil.host import (
    GuestTerminated,
    Hypervisor,
    LaunchRegion,
    ProtectedRange,
    Protection,
    RunState,
    VmrunRefused,
)
from veil.host.devices import Platform
from veil.host.doorbell import HV_EVENT
from veil.host.vcpu import exception_event
from veil.snp.layouts import EVENT_VALID, V_IGN_TPR, V_IRQ, V_NMI, SevFeatures, Vmsa, VmsaSegment
from veil.snp.machine import Machine

_MEMORY = 8 << 20
#: the same memory with the C-bit clear
_SHARED = 1 << 30
_TABLES, _IDT, _CODE, _LOGS, _STACKS, _VMSAS = 0x1000, 0x8000, 0x10000, 0x20000, 0x30000, 0x40000
#: shared: a GHCB and a doorbell page for each VCPU
_PAGES = 0x40_0000
#: behind a short jump
_ON_HV = _CODE + 16
_C_BIT = 1 << 51
_RESTRICTED = int(SevFeatures.SNP | SevFeatures.RESTRICTED_INJECTION)
_NMI_LOGGED = 2

#: r12: the VCPU's GHCB, r13: its doorbell page, r14: where it logs vectors; r15: its number
_SETUP = f"""
.macro msr low, high
    mov ecx, 0xc0010130
    mov eax, \\low
    mov edx, \\high
    wrmsr
    rep; vmmcall
.endm
.macro share page
    mov ecx, 0xc0010130
    lea eax, [\\page + 0x14]
    mov edx, {2 << 20}
    wrmsr
    rep; vmmcall
.endm
.macro request code, info1, info2
    mov rax, \\code
    mov [r12 + 0x390], rax
    mov rax, \\info1
    mov [r12 + 0x398], rax
    mov rax, \\info2
    mov [r12 + 0x3a0], rax
    call ask
.endm
.macro write_msr number, value
    mov qword ptr [r12 + 0x308], \\number
    mov qword ptr [r12 + 0x1f8], \\value
    mov qword ptr [r12 + 0x310], 0
    request 0x7c, 1, 0
.endm
.macro finish reason
    msr 0x1100 | \\reason << 16, 0
.endm
    jmp begin
    .balign 16
on_hv:
    push rax
    lock and byte ptr [r13 + 1], 0x7f
    lock btr word ptr [r13], 8
    mov al, {_NMI_LOGGED}
    jc 1f
    xor eax, eax
    xchg al, [r13]
    test al, al
    jz 2f
1:  mov [r14], al
    inc r14
2:  pop rax
    iretq
ask:
    mov rax, 1 << 63
    mov [r12 + 0x3f0], rax
    mov rax, 1 << 33 | 1 << 34 | 7 << 50
    mov [r12 + 0x3f8], rax
    mov word ptr [r12 + 0xffa], 2
    rep; vmmcall
    cmp dword ptr [r12 + 0x398], 0
    jne failed
    ret
failed:
    finish 9
end_interrupt:
    lock btr word ptr [r13 + 2], 0
    jc 1f
    write_msr 0x80b, 0
1:  ret
setup:
    mov r12, r15
    shl r12, 13
    add r12, {_PAGES + _SHARED}
    lea r13, [r12 + {PAGE}]
    mov r14, r15
    shl r14, 12
    add r14, {_LOGS}
    lea rbx, [r12 - {_SHARED}]
    share rbx
    add rbx, {PAGE}
    share rbx
    sub rbx, {PAGE}
    mov ecx, 0xc0010130
    lea eax, [rbx + 0x12]
    xor edx, edx
    wrmsr
    rep; vmmcall
    mov eax, ebx
    xor edx, edx
    wrmsr
    add rbx, {PAGE}
    request 0x80000014, 1, rbx
    write_msr 0x80f, 0x1ff
    ret
"""


def _tables() -> bytes:
    """All of memory private at its own address, and shared a GiB above; with pages of 2 MiB."""
    pml4, pointers, private, shared = (bytearray(PAGE) for _ in range(4))
    struct.pack_into("<Q", pml4, 0, (_TABLES + PAGE) | _C_BIT | 7)
    struct.pack_into("<2Q", pointers, 0, (_TABLES + 2 * PAGE) | _C_BIT | 7, (_TABLES + 3 * PAGE) | _C_BIT | 7)
    for page in range(_MEMORY >> 21):
        struct.pack_into("<Q", private, 8 * page, page << 21 | _C_BIT | 0x87)
        struct.pack_into("<Q", shared, 8 * page, page << 21 | 0x87)
    gdt = struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    return bytes(pml4 + pointers + private + shared) + gdt


def _vmsa(vcpu: int, rip: int, *, vmpl: int = 0, features: int = _RESTRICTED) -> bytes:
    vmsa = Vmsa(vmpl=vmpl, sev_features=features, rip=rip, r15=vcpu, rsp=_STACKS + (vcpu + 1) * PAGE, cr3=_TABLES)
    vmsa.cr0, vmsa.cr4, vmsa.efer, vmsa.rflags = 0x80050033, 0x620, 0x1D01, 2
    vmsa.cs, vmsa.ss = VmsaSegment(8, 0xA9B, 0xFFFFFFFF, 0), VmsaSegment(16, 0xC93, 0xFFFFFFFF, 0)
    vmsa.gdtr, vmsa.idtr = VmsaSegment(0, 0, 0x17, _TABLES + 4 * PAGE), VmsaSegment(0, 0, 0x1FF, _IDT)
    vmsa.tr, vmsa.ldtr = VmsaSegment(0, 0x8B, 0x67, 0), VmsaSegment(0, 0x82, 0, 0)
    vmsa.dr6, vmsa.dr7, vmsa.g_pat, vmsa.xcr0 = 0xFFFF0FF0, 0x400, 0x0007040600070406, 1
    return bytes(vmsa)


def _boot(
    machine: Machine, programs: Sequence[str], *, levels: Sequence[tuple[int, int, str]] = (), **options: Any
) -> Hypervisor:
    """A program for each VCPU, behind `setup`; `levels`: (VCPU, VMPL, code) of others, without restricted injection."""
    choice = "".join(f"cmp r15, {number}\nje start{number}\n" for number in range(len(programs)))
    starts = "".join(
        f"start{number}:\ncall setup\n{program}\n1: hlt\njmp 1b\n" for number, program in enumerate(programs)
    )
    code = assemble(f"{_SETUP}\nbegin:\n{choice}{starts}", _CODE)
    gate = struct.pack("<HHBBHII", _ON_HV & 0xFFFF, 8, 0, 0x8E, _ON_HV >> 16, 0, 0)
    everybody = (15, 15, 15)
    regions = [
        LaunchRegion(_TABLES, PageType.NORMAL, _tables(), permissions=everybody),
        LaunchRegion(_IDT, PageType.NORMAL, bytes(28 * 16) + gate, permissions=everybody),
        LaunchRegion(_CODE, PageType.NORMAL, code, permissions=everybody),
        LaunchRegion(_LOGS, PageType.ZERO, size=4 * PAGE),
        LaunchRegion(_STACKS, PageType.ZERO, size=4 * PAGE),
    ]
    for number, (vcpu, vmpl, text) in enumerate(levels):
        at = _CODE + (8 + number) * PAGE
        regions.append(LaunchRegion(at, PageType.NORMAL, assemble(text, at), permissions=everybody))
        state = _vmsa(vcpu, at, vmpl=vmpl, features=1)
        regions.append(LaunchRegion(_VMSAS + (8 + number) * PAGE, PageType.VMSA, state, vcpu=vcpu, vmpl=vmpl))
    vcpus = len(programs)
    for vcpu in range(vcpus):
        regions.append(LaunchRegion(_VMSAS + vcpu * PAGE, PageType.VMSA, _vmsa(vcpu, _CODE), vcpu=vcpu))
    platform = Platform(machine.host_view(), vcpus=vcpus, tsc=machine.tsc, x2apic=True)
    host = Hypervisor(machine, platform, vcpus, monitor=False, **options)
    host.launch(regions)
    return host


def _log(machine: Machine, vcpu: int) -> bytes:
    """The vectors that it took."""
    return machine.view(vmpl=0).read(_LOGS + vcpu * PAGE, PAGE).rstrip(b"\0")


def _end(host: Hypervisor) -> int:
    with pytest.raises(GuestTerminated) as caught:
        host.run(timeout=20)
    return caught.value.code


_TIMER = """
    write_msr 0x832, {vector}
    write_msr 0x838, 20000
1:  cmp r14, {logged}
    jae 2f
    hlt
    jmp 1b
2:  call end_interrupt
"""


def _timer(vector: int, logged: int) -> str:
    return _TIMER.format(vector=vector, logged=_LOGS + logged)


def test_a_timer_by_hv() -> None:
    """RFLAGS.IF is clear all the time; each needs its EOI before the next one comes."""
    with Machine(_MEMORY) as machine:
        host = _boot(machine, [_timer(0x40, 1) + _timer(0x33, 2) + _timer(0x41, 3) + "finish 5"])
        assert _end(host) == 5
        assert _log(machine, 0) == bytes([0x40, 0x33, 0x41])
        assert host.counts.nae_events[NaeEvent.HV_DOORBELL] == 1
        assert host.platform.apics[0].isr == 0  # type: ignore[attr-defined]


def test_a_vector_that_is_not_taken_is_not_in_service() -> None:
    """A higher one takes its place on the page, and it comes afterwards."""
    wait = "mov byte ptr [r13 + 1], 0x80\n"  # as if #HV had been seen: nobody takes the vector
    send = "request 0x80000015, 0x44035, 0\nrequest 0x80000015, 0x44052, 0\n"
    look = "movzx ebx, byte ptr [r13]\nmov [r14 + 0x800], bl\nmov byte ptr [r13 + 1], 0\n"
    take = "call take\ncall end_interrupt\nrequest 0x80000003, 0, 0\ncall take\ncall end_interrupt\nfinish 6\n"
    helper = "take:\nxor eax, eax\nxchg al, [r13]\nmov [r14], al\ninc r14\nret\n"
    with Machine(_MEMORY) as machine:
        host = _boot(machine, [f"{wait}{send}{look}{take}{helper}"])
        assert _end(host) == 6
        assert machine.view(vmpl=0).read(_LOGS + 0x800, 1) == b"\x52"
        assert machine.view(vmpl=0).read(_LOGS, 3) == b"\x52\x35\0"


_SECOND = """
    lock inc qword ptr [{ready}]
1:  cmp r14, {target}
    jae 2f
    hlt
    jmp 1b
2:  call end_interrupt
    lock inc qword ptr [{ready}]
"""


def test_interrupts_and_nmis_between_processors() -> None:
    ready, log = _LOGS + 3 * PAGE, _LOGS + PAGE
    first = f"""
        request 0x80000015, 0x100000500, 0
        request 0x80000015, 0x100000610, 0
    1:  pause
        cmp qword ptr [{ready}], 1
        jne 1b
        request 0x80000015, 0x100000055, 0
    1:  pause
        cmp qword ptr [{ready}], 2
        jne 1b
        request 0x80000015, 0x100000400, 0
    1:  pause
        cmp byte ptr [{log + 1}], {_NMI_LOGGED}
        jne 1b
        finish 4
    """
    with Machine(_MEMORY) as machine:
        host = _boot(machine, [first, _SECOND.format(ready=ready, target=log + 1)])
        assert _end(host) == 4
        assert _log(machine, 1) == bytes([0x55, _NMI_LOGGED])
        assert _log(machine, 0) == b""


def test_a_level_above_the_kernel_calls_its_like() -> None:
    """VCPU 1 runs a kernel that never leaves; its monitor is called in, needs no EOI, and goes back to the kernel."""
    ready, log = _LOGS + 3 * PAGE, _LOGS + PAGE
    first = f"""
    1:  pause
        cmp qword ptr [{ready}], 1
        jne 1b
        request 0x80000015, 0x100000061, 0
    1:  pause
        cmp byte ptr [{log}], 0x61
        jne 1b
        finish 3
    """
    second = f"""
        lock inc qword ptr [{ready}]
    1:  mov ecx, 0xc0010130
        mov eax, 0x16
        mov edx, 1
        wrmsr
        rep; vmmcall
        call end_interrupt
        jmp 1b
    """
    kernel = "1: inc rax\njmp 1b"
    with Machine(_MEMORY) as machine:
        host = _boot(machine, [first, second], levels=[(1, 1, kernel)], kernel_vmpl=1)
        host.vcpus[1].start(0)
        assert _end(host) == 3
        assert _log(machine, 1) == b"\x61"
        assert host.platform.apics[1].isr == 0  # type: ignore[attr-defined]


def test_an_nmi_ends_the_halt_of_a_level_above_the_kernel() -> None:
    ready, log = _LOGS + 3 * PAGE, _LOGS + PAGE
    first = f"""
    1:  pause
        cmp qword ptr [{ready}], 1
        jne 1b
        request 0x80000015, 0x100000400, 0
    1:  pause
        cmp byte ptr [{log}], {_NMI_LOGGED}
        jne 1b
        finish 3
    """
    second = f"lock inc qword ptr [{ready}]"
    with Machine(_MEMORY) as machine:
        host = _boot(machine, [first, second], levels=[(1, 1, "hlt")], kernel_vmpl=1)
        host.vcpus[1].start(0)
        assert _end(host) == 3


# A hostile host

_EVENTS = {
    "an interrupt": EVENT_VALID | 0x40,
    "int 0x80": EVENT_VALID | 4 << 8 | 0x80,
    "NMI": EVENT_VALID | 2 << 8 | 2,
    "#VC": exception_event(29, 0x72),
    "#PF": exception_event(14, 2),
    "#HV with an error code": exception_event(28, 0),
    "interrupt 28": EVENT_VALID | 28,
}


@pytest.mark.parametrize("event", _EVENTS)
def test_another_event_is_stopped_by_the_processor(event: str) -> None:
    with Machine(_MEMORY) as machine:
        host = _boot(machine, ["finish 5"])
        context = host.vcpus[0].contexts[0]
        context.vmcb.event_inj = _EVENTS[event]
        with pytest.raises(VmrunRefused, match="restricted injection"):
            host.run(timeout=10)


@pytest.mark.parametrize("offer", [V_IRQ | V_IGN_TPR | 0x40 << 32, V_NMI])
def test_queued_interrupts_and_nmis_do_not_arrive(offer: int) -> None:
    """There is no gate for them: a delivery would be a triple fault."""
    with Machine(_MEMORY) as machine:
        host = _boot(machine, ["sti\nnop\nnop\nfinish 5"])
        host.vcpus[0].contexts[0].vmcb.v_intr |= offer
        assert _end(host) == 5


def test_hv_that_nobody_asked_for_finds_an_empty_page() -> None:
    with Machine(_MEMORY) as machine:
        host = _boot(machine, ["hlt\nfinish 5"])
        context = host.vcpus[0].contexts[0]
        host.run(lambda: context.doorbell is not None, timeout=10)
        context.vmcb.event_inj = HV_EVENT
        host.run(lambda: host.vcpus[0].state == RunState.HALTED, timeout=10)
        host.vcpus[0].state = RunState.RUNNABLE
        assert _end(host) == 5
        assert _log(machine, 0) == b""


# The requests


def _guest(*, restricted: bool = True) -> Guest:
    guest = Guest()
    guest.view.private[SHARED // PAGE] = False
    guest.host.vcpus[0].contexts[0].restricted = restricted
    return guest


_DOORBELL = int(NaeEvent.HV_DOORBELL)
_NONE = (1 << 64) - 1


def test_the_page_is_set_asked_for_and_cleared() -> None:
    guest = _guest()
    assert guest.call(_DOORBELL, DoorbellRequest.GET_PREFERRED) == OK | {"info2": _NONE}
    assert guest.call(_DOORBELL, DoorbellRequest.QUERY) == OK | {"info2": _NONE}
    assert guest.call(_DOORBELL, DoorbellRequest.SET, SHARED) == OK | {"info2": SHARED}
    assert guest.call(_DOORBELL, DoorbellRequest.QUERY) == OK | {"info2": SHARED}
    assert guest.call(_DOORBELL, DoorbellRequest.CLEAR) == OK
    assert guest.call(_DOORBELL, DoorbellRequest.QUERY) == OK | {"info2": _NONE}


@pytest.mark.parametrize(
    ("request_code", "gpa"),
    [
        (DoorbellRequest.SET, SHARED + 8),
        (DoorbellRequest.SET, SHARED + PAGE),  # private
        (DoorbellRequest.SET, VMSA),
        (DoorbellRequest.SET, 1 << 40),
        (4, SHARED),
        (1 << 32, SHARED),
    ],
)
def test_what_is_no_page_is_refused_and_leaves_none(request_code: int, gpa: int) -> None:
    guest = _guest()
    guest.call(_DOORBELL, DoorbellRequest.SET, SHARED)
    assert guest.call(_DOORBELL, request_code, gpa) == malformed(GhcbReason.INVALID_INPUT)
    assert guest.call(_DOORBELL, DoorbellRequest.QUERY) == OK | {"info2": _NONE}


def test_the_page_of_a_more_privileged_level_is_refused() -> None:
    guest = _guest()
    guest.host.protection = Protection((ProtectedRange(SHARED, PAGE, vmpl=-1),))
    assert guest.call(_DOORBELL, DoorbellRequest.SET, SHARED) == malformed(GhcbReason.INVALID_INPUT)


def test_it_is_for_levels_that_have_it() -> None:
    guest = _guest(restricted=False)
    for event in (NaeEvent.HV_DOORBELL, NaeEvent.HV_IPI):
        assert guest.call(event, 1, SHARED) == malformed(GhcbReason.INVALID_EVENT)
    plain = guest.call(NaeEvent.HV_FEATURES)["info2"]
    assert not plain & HypervisorFeatures.RESTRICTED_INJECTION
    restricted = _guest()
    assert restricted.call(NaeEvent.HV_FEATURES)["info2"] == plain | HypervisorFeatures.RESTRICTED_INJECTION
    assert restricted.call_msr(0x080) >> 12 == plain | HypervisorFeatures.RESTRICTED_INJECTION


def test_an_interrupt_between_processors_of_the_kernels_is_the_apics() -> None:
    guest = _guest()
    assert guest.call(NaeEvent.HV_IPI, 0x100000040) == OK
    assert ("ipi", 0, 0x100000040) in guest.platform.log
    guest.platform.apics_off.add(0)
    assert guest.call(NaeEvent.HV_IPI, 0x100000040) == malformed(GhcbReason.INVALID_INPUT)


@pytest.mark.parametrize("icr", [0x10000000F, 0x100000540, 0x100000640, 0x100000740, 0x100000240])
def test_what_another_level_cannot_send(icr: int) -> None:
    guest = _guest()
    guest.host.kernel_vmpl = 3
    assert guest.call(NaeEvent.HV_IPI, icr) == malformed(GhcbReason.INVALID_INPUT)


def test_a_page_that_is_private_again_rings_no_more() -> None:
    guest = _guest()
    guest.call(_DOORBELL, DoorbellRequest.SET, SHARED)
    guest.view.private[SHARED // PAGE] = True
    before = bytes(guest.view.memory[SHARED : SHARED + PAGE])
    guest.platform.vectors[0] = [0x40]
    assert guest.call(NaeEvent.HV_FEATURES)["info1"] == 0
    assert bytes(guest.view.memory[SHARED : SHARED + PAGE]) == before
    assert not guest.host.vcpus[0].contexts[0].vmcb.event_inj


def test_a_snapshot_has_page_and_vectors() -> None:
    guest = _guest()
    guest.call(_DOORBELL, DoorbellRequest.SET, SHARED)
    context = guest.host.vcpus[0].contexts[0]
    context.own_vectors = 1 << 0x61
    again = Guest()
    again.host.load(guest.host.dump())
    restored = again.host.vcpus[0].contexts[0]
    assert restored.doorbell is not None
    assert (restored.doorbell.gpa, restored.own_vectors, restored.restricted) == (SHARED, 1 << 0x61, True)


def test_only_hv_is_given_back_after_an_exit() -> None:
    guest = _guest()
    context = guest.host.vcpus[0].contexts[0]
    for event, kept in ((exception_event(29, 0x72), 0), (HV_EVENT, HV_EVENT)):
        context.vmcb.exit_int_info = event
        context.keep_event()
        assert context.vmcb.event_inj == kept
