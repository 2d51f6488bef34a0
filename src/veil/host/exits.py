# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host does at each exit (APM volume 2, appendix C; automatic exits of SEV-ES guests, 15.35.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.domains import MONITOR_VMPL
from veil.formats.ghcb import MSR_INFO_MASK, RUN_VMPL_REFUSED, MsrRequest, run_context_ended
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.errors import MalformedGhcb, NestedPageFault, TripleFault, UnexpectedExit, VmrunRefused
from veil.host.ghcb.msr_protocol import handle_ghcb_msr
from veil.host.ghcb.page_protocol import handle_ghcb_page
from veil.host.page_state import smash
from veil.host.vcpu import RunState
from veil.snp.exit_codes import ExitCode
from veil.snp.rmp import FAULT_ENC, FAULT_RMP, FAULT_SIZEM, FAULT_VMPL

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["EXIT_HANDLERS", "leave_enclave", "unexpected"]


def _vmgexit(host: Host, vcpu: Vcpu, context: Context) -> None:
    msr: int = context.vmcb.ghcb_gpa
    if msr & MSR_INFO_MASK:
        handle_ghcb_msr(host, vcpu, context, msr)
    elif msr == context.ghcb or (msr and host.in_ram(msr, PAGE_SIZE)):
        handle_ghcb_page(host, vcpu, context)
    else:
        raise MalformedGhcb(
            f"VMGEXIT with a GHCB MSR of {msr:#x}, which is not a page of guest memory; register a GHCB first",
            vcpu=vcpu.index,
            vmpl=context.vmpl,
        )


def _interrupted(host: Host, vcpu: Vcpu, context: Context) -> None:
    """The deadline passed or somebody kicked: the run loop looks at the clock and at the inbox."""
    context.keep_event()


def _pause(host: Host, vcpu: Vcpu, context: Context) -> None:
    """The guest spins: what it waits for may be another VCPU's to do."""
    host.reschedule = True


def _halt(host: Host, vcpu: Vcpu, context: Context) -> None:
    vcpu.state = RunState.HALTED


def _shutdown(host: Host, vcpu: Vcpu, context: Context) -> None:
    raise TripleFault(vcpu=vcpu.index, vmpl=context.vmpl)


def _invalid(host: Host, vcpu: Vcpu, context: Context) -> None:
    if context.refused is not None:
        raise _fault(vcpu, context, *context.refused)
    raise VmrunRefused(
        f"VMRUN refused the VMSA at {context.vmcb.vmsa_pa:#x}: it is not a validated VMSA page, EFER.SVME is clear (a "
        "monitor is still serving this context), SEV_FEATURES lacks SNP or has what this processor lacks, CR0, CR3, "
        "CR4, EFER, DR6, DR7 and CS are together what no processor takes, or the event that was to come with it is not "
        "valid, or refused (restricted injection)",
        vcpu=vcpu.index,
        vmpl=context.vmpl,
    )


def _busy(host: Host, vcpu: Vcpu, context: Context) -> None:
    """Alternate injection: an exit cut off an event's delivery, and a more privileged level is to give it back."""
    above = min(vcpu.contexts)
    if above >= context.vmpl:
        raise VmrunRefused(
            f"VMRUN refused the VMSA at {context.vmcb.vmsa_pa:#x}: it is BUSY (VINTR_CTRL) until a more privileged "
            "level gives back an event whose delivery an exit cut off, and there is none",
            vcpu=vcpu.index,
            vmpl=context.vmpl,
        )
    host.enter(vcpu, above)


def _nested_page_fault(host: Host, vcpu: Vcpu, context: Context) -> None:
    vmcb = context.vmcb
    info: int = vmcb.exit_info_1
    gpa: int = vmcb.exit_info_2
    # Whatever is decided, an event whose delivery this fault cut off must not be lost.
    context.keep_event()
    hook = host.on_npf
    if hook is not None and hook(vcpu.index, context.vmpl, gpa, info):
        return
    if info & FAULT_SIZEM and smash(host.view, gpa):
        return
    if host.converts_pages and _convert(host, vcpu, context, gpa, info):
        return
    # A second one after it was decided is a new fault, if the guest went on at all.
    from_kernel = info & FAULT_VMPL and context.vmpl == host.kernel_vmpl and MONITOR_VMPL in vcpu.contexts
    if from_kernel and host.hands_on_refusals():
        context.handed_on = (gpa, info)
        host.enter(vcpu, MONITOR_VMPL)
        return
    raise _fault(vcpu, context, gpa, info)


def _convert(host: Host, vcpu: Vcpu, context: Context, gpa: int, info: int) -> bool:
    """Give or take the page as the access wants it; False if that is not what the fault is about.

    KVM and QEMU do so at each access with the other C-bit (KVM_EXIT_MEMORY_FAULT), and firmware counts on it: it uses
    shared pages without a page state change. Nothing is lost by it that a host could not take anyway.
    """
    page, private = gpa & -PAGE_SIZE, bool(info & FAULT_ENC)
    # Hosted code means it when its access is refused; and it would not be repeated.
    if context.vmpl != host.kernel_vmpl:
        return False
    if not info & FAULT_RMP or info & (FAULT_SIZEM | FAULT_VMPL) or not host.may_name(context, page, PAGE_SIZE):
        return False
    # A page that is already as it was wanted is refused for another reason: it holds a VMSA that runs.
    if host.view.is_shared(page, PAGE_SIZE) != private:
        return False
    return host.change_page(vcpu, context, page, private=private, large=False)


def _fault(vcpu: Vcpu, context: Context, gpa: int, info: int) -> NestedPageFault:
    return NestedPageFault(gpa, info, _describe_fault(info, context.vmpl), vcpu=vcpu.index, vmpl=context.vmpl)


def _describe_fault(info: int, vmpl: int) -> str:
    if info & FAULT_VMPL:
        return f"VMPL {vmpl} has no permission for this access; look at what VMPL 0 granted with RMPADJUST"
    if info & FAULT_SIZEM:
        return "the page sizes of the guest's request and of the RMP entry differ, and PSMASH does not help"
    if info & FAULT_ENC:
        return (
            "private access (C-bit 1) to a page that is the host's or that holds a running VMSA; "
            "the guest lacks a page state change, or the host took the page away"
        )
    if info & FAULT_RMP:
        return "shared access (C-bit 0) to a page that is the guest's; the guest lacks a page state change"
    return "the access is outside of guest memory"


def leave_enclave(host: Host, vcpu: Vcpu, context: Context) -> None:
    """An exit of a context of VMPL 2. Whatever an enclave does, it ends nothing but its own run."""
    vmcb = context.vmcb
    code: int = vmcb.exit_code
    if code in _RUNS_ON:
        EXIT_HANDLERS[code](host, vcpu, context)
    elif code == ExitCode.VMGEXIT:
        # The GHCB MSR says so too, and nothing in the enclave could have it say anything else.
        counts = host.counts.msr_requests
        counts[MsrRequest.RUN_VMPL] = counts.get(MsrRequest.RUN_VMPL, 0) + 1
        host.leave_enclave(vcpu)
    elif code == ExitCode.INVALID:
        host.leave_enclave(vcpu, RUN_VMPL_REFUSED)
    else:
        context.keep_event()
        hook = host.on_npf
        if code == ExitCode.NPF and hook and hook(vcpu.index, context.vmpl, vmcb.exit_info_2, vmcb.exit_info_1):
            return
        host.leave_enclave(vcpu, run_context_ended(code))


EXIT_HANDLERS: dict[int, Callable[[Host, Vcpu, Context], None]] = {
    int(ExitCode.VMGEXIT): _vmgexit,
    int(ExitCode.INTR): _interrupted,
    int(ExitCode.VINTR): _interrupted,
    int(ExitCode.NMI): _interrupted,
    int(ExitCode.PAUSE): _pause,
    int(ExitCode.HLT): _halt,
    int(ExitCode.SHUTDOWN): _shutdown,
    int(ExitCode.INVALID): _invalid,
    int(ExitCode.BUSY): _busy,
    int(ExitCode.NPF): _nested_page_fault,
}


#: exits that are nobody's doing: the context goes on
_RUNS_ON = frozenset({ExitCode.INTR, ExitCode.VINTR, ExitCode.NMI, ExitCode.PAUSE})


def unexpected(host: Host, vcpu: Vcpu, context: Context) -> None:
    """Nothing that this host intercepts."""
    vmcb = context.vmcb
    raise UnexpectedExit(
        f"exit {vmcb.exit_code:#x} (EXITINFO1 {vmcb.exit_info_1:#x}, EXITINFO2 {vmcb.exit_info_2:#x}) is not one that "
        "an SNP guest takes under this host; a bug of the machine",
        vcpu=vcpu.index,
        vmpl=context.vmpl,
    )
