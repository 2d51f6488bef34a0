# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses of VMPL 3 that the RMP refused: what the services that guard the page make of them.

The host hands a nested page fault on by running VMPL 0 on the VCPU. That it does so is all that it says: what happened
stands in the VMSA, where the hardware saved it, and counts once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from veil.formats.domains import KERNEL_VMPL
from veil.formats.errors import FormatError
from veil.formats.nested_faults import needed_permission
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import Efer, Rflags
from veil.formats.request_block import BlockRequest
from veil.formats.service_domain import SERVICES_DOMAIN, DomainCall
from veil.formats.service_events import Decision, RefusedAccess, Registers, Verdict
from veil.formats.status import Status
from veil.monitor.kernel_exceptions import CannotDeliver, deliver
from veil.monitor.services_mailbox import ServicesUnavailable
from veil.snp.errors import RmpViolation
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import EVENT_VALID, Vmsa
from veil.snp.rmp import FAULT_RMP, FAULT_SIZEM, FAULT_VMPL

if TYPE_CHECKING:
    from veil.monitor.contexts import VcpuContexts
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.services_mailbox import ServicesMailbox
    from veil.monitor.state import MonitorState

__all__ = ["decide_refusal", "is_refusal"]

_SVME = int(Efer.SVME)
_NPF = int(ExitCode.NPF)
#: what a service may change: all that there is (an enumeration's iterator leaves out what has several bits)
_RFLAGS = sum(Rflags) & ~Rflags.ONE | Rflags.IOPL
_GPRS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


def is_refusal(state: MonitorState, host: Ghcb, vcpu: VcpuContexts) -> bool:
    """Did the VCPU's kernel context leave by a nested page fault that nobody has decided yet?"""
    vmsa = vcpu.kernel.vmsa
    hearing = state.hearing
    if vmsa is None or hearing is None or not hearing.guards:
        return False
    try:
        return host.cpu.view.read_u64(vmsa + Vmsa.guest_exit_code.offset) == _NPF
    except RmpViolation:
        return False  # the host took the VMSA away, perhaps for the kernel: it cannot run


def decide_refusal(
    state: MonitorState, mailbox: ServicesMailbox, host: Ghcb, vcpu: VcpuContexts
) -> Generator[None, None, None]:
    """Ask who guards the page, and do what he says. A VCPU that must not go on has no SVME from here on: no VMRUN
    enters it, whatever the host tries, and an honest one says where it stopped."""
    view, gpa = host.cpu.view, vcpu.kernel.vmsa
    assert gpa is not None
    efer = view.read_u64(gpa + Vmsa.efer.offset)
    # The host must not run the context while it is decided, nor have the same exit decided twice.
    view.write_u64(gpa + Vmsa.efer.offset, efer & ~_SVME)
    view.write_u64(gpa + Vmsa.guest_exit_code.offset, ExitCode.INVALID)
    # And the kernel must not have its page back, or its registers written when they are another context's.
    vcpu.unfinished = vcpu.deciding = gpa
    try:
        vmsa = Vmsa.from_buffer_copy(view.read(gpa, PAGE_SIZE))
        verdict = yield from _ask(state, mailbox, host, vcpu, gpa, vmsa)
        if verdict is None or _apply(host, vmsa, verdict):
            fields = [(getattr(Vmsa, name).offset, getattr(vmsa, name)) for name in (*_GPRS, "rip", "rflags", "cr2")]
            view.write_fields(gpa, [*fields, (Vmsa.efer.offset, efer | _SVME)])
    except RmpViolation:
        # Another VCPU's kernel had the host take the VMSA away meanwhile: no VMRUN enters it any more.
        return
    finally:
        vcpu.unfinished = vcpu.deciding = None


def _ask(
    state: MonitorState, mailbox: ServicesMailbox, host: Ghcb, vcpu: VcpuContexts, gpa: int, vmsa: Vmsa
) -> Generator[None, None, Verdict | None]:
    """None: the context goes on as it is."""
    hearing = state.hearing
    assert hearing is not None
    info, owner = vmsa.exit_info_1, state.book.owner(vmsa.exit_info_2)
    # A page that the host shares, took away or holds in another size is the host's to mend; nobody's rights are at
    # stake. In the delivery of an event there is no instruction that a service could carry out.
    refused = info & FAULT_RMP and info & FAULT_VMPL and not info & FAULT_SIZEM
    if refused and _is_allowed(host, vmsa):
        # Another VCPU got the page back from a service meanwhile: the instruction is tried again.
        return None
    if not refused or owner not in hearing.guards or vmsa.exit_int_info & EVENT_VALID:
        return Verdict.refuse()
    access = RefusedAccess(vcpu.apic_id, gpa, vmsa.exit_info_2, info, owner, _registers(vmsa))
    try:
        status, body = yield from mailbox.request(
            host, vcpu.apic_id, BlockRequest(SERVICES_DOMAIN, DomainCall.ACCESS_REFUSED, access.pack())
        )
        return Verdict.parse(body) if status == Status.OK else Verdict.refuse()
    except (ServicesUnavailable, FormatError):
        return Verdict.refuse()


def _is_allowed(host: Ghcb, vmsa: Vmsa) -> bool:
    """May VMPL 3 do by now what it was refused?"""
    needed = needed_permission(vmsa.exit_info_1, vmsa.cpl)
    return host.cpu.view.lower(KERNEL_VMPL).allows(vmsa.exit_info_2, needed)


def _registers(vmsa: Vmsa) -> Registers:
    return Registers(
        tuple(getattr(vmsa, name) for name in _GPRS), vmsa.rip, vmsa.rflags, vmsa.cr0, vmsa.cr2, vmsa.cr3, vmsa.cr4,
        vmsa.efer, vmsa.fs.base, vmsa.gs.base, vmsa.cpl,
    )  # fmt: skip


def _apply(host: Ghcb, vmsa: Vmsa, verdict: Verdict) -> bool:
    """Change the copy of the registers; may the context go on?"""
    if verdict.decision is Decision.INJECT:
        try:
            deliver(host.cpu.view, vmsa, verdict.vector, verdict.error_code, verdict.address)
        except CannotDeliver:
            return False
        return True
    if verdict.registers is None:
        return False
    for name, value in zip(_GPRS, verdict.registers.gprs, strict=True):
        setattr(vmsa, name, value)
    vmsa.rip = verdict.registers.rip
    vmsa.rflags = verdict.registers.rflags & _RFLAGS | Rflags.ONE
    return True
