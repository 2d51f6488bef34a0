# SPDX-License-Identifier: GPL-2.0-or-later
"""The GHCB MSR protocol (56421, section 2.3 "GHCB MSR Protocol"): requests in the GHCB MSR itself.

Bits 11:0 of the MSR are the request (even codes) or the answer (odd codes); 0 there means a GHCB page instead. A
request that the host does not know leaves the MSR as it is, which no guest mistakes for an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.board import C_BIT_POSITION
from veil.formats.domains import VMPLS
from veil.formats.ghcb import (
    MSR_DATA_SHIFT,
    MSR_ERROR,
    MSR_INFO_MASK,
    MSR_PAGE_OPERATION_SHIFT,
    RUN_CONTEXT_SHIFT,
    RUN_VMPL_REFUSED,
    MsrRequest,
    MsrResponse,
    PageOperation,
    run_vmpl_request,
)
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.errors import GuestTerminated
from veil.host.ghcb.fields import VERSION_MAX, VERSION_MIN
from veil.host.ghcb.reset_hold import ap_reset_hold_answer
from veil.host.observer_events import GhcbMsrEvent
from veil.host.termination import describe_termination
from veil.host.vcpu import Hold, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["handle_ghcb_msr"]


_MASK_32 = 0xFFFFFFFF
_MASK_52 = (1 << 52) - 1
_PFN_MASK = _MASK_52 << MSR_DATA_SHIFT
# What a request by the MSR may ask for; the rest is advice about large pages, which it cannot name.
_PAGE_OPERATIONS = (PageOperation.PRIVATE, PageOperation.SHARED)


# Plain numbers: a domain switch is the most frequent request.
_RUN_VMPL_DONE = int(MsrResponse.RUN_VMPL)
_RUN_VMPL_RESERVED = _MASK_32 & ~MSR_INFO_MASK
#: the VMPL of each request that names no context
_PLAIN_SWITCHES = {run_vmpl_request(vmpl): vmpl for vmpl in range(VMPLS)}


def _sev_info(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    return VERSION_MAX << 48 | VERSION_MIN << 32 | C_BIT_POSITION << 24 | MsrResponse.SEV_INFO


def _cpuid(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    register = value >> 30 & 3
    answer = host.cpuid.answer(value >> 32, 0, vcpu.apic_id, apic_enabled=host.platform.apic_enabled(vcpu.index))
    return (answer[register] & _MASK_32) << 32 | register << 30 | MsrResponse.CPUID


def _ap_reset_hold(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    context.hold = Hold.MSR
    vcpu.state = RunState.WAIT_SIPI
    return ap_reset_hold_answer(started=False)


def _preferred_gpa(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    # All ones: the host has no preference, the guest chooses.
    return _PFN_MASK | MsrResponse.PREFERRED_GPA


def _register_gpa(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    gpa = value & _PFN_MASK
    if not gpa:
        # As KVM takes it: the guest is about to have its page back.
        context.ghcb = None
        return MsrResponse.REGISTER_GPA
    # All ones in the answer: refused. The page may still be private, guests register before or after sharing it.
    if not host.may_name(context, gpa, PAGE_SIZE):
        return _PFN_MASK | MsrResponse.REGISTER_GPA
    context.ghcb = gpa
    return gpa | MsrResponse.REGISTER_GPA


def _page_state_change(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    operation = value >> MSR_PAGE_OPERATION_SHIFT & 0xF
    gpa = value & (1 << 52) - PAGE_SIZE
    if value >> 56 or operation not in _PAGE_OPERATIONS or not host.may_name(context, gpa, PAGE_SIZE):
        return MSR_ERROR | MsrResponse.PAGE_STATE_CHANGE
    if not host.change_page(vcpu, context, gpa, private=operation == PageOperation.PRIVATE, large=False):
        return MSR_ERROR | MsrResponse.PAGE_STATE_CHANGE
    return MsrResponse.PAGE_STATE_CHANGE


def _run_vmpl(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    vmpl = _PLAIN_SWITCHES.get(value)
    if vmpl is not None:
        return _RUN_VMPL_DONE if host.switch_vmpl(vcpu, context, vmpl) else RUN_VMPL_REFUSED
    vmpl, page = value >> 32 & 0xFF, value >> RUN_CONTEXT_SHIFT
    # Bits 31:12 must be zero; they would go unnoticed.
    if value & _RUN_VMPL_RESERVED or vmpl != host.enclave_vmpl or not page:
        return RUN_VMPL_REFUSED
    return _RUN_VMPL_DONE if host.enter_enclave(vcpu, context, page * PAGE_SIZE) else RUN_VMPL_REFUSED


def _hv_features(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    return host.offered_features(context) << MSR_DATA_SHIFT | MsrResponse.HV_FEATURES


def _terminate(host: Host, vcpu: Vcpu, context: Context, value: int) -> int:
    reason_set, code = value >> MSR_DATA_SHIFT & 0xF, value >> 16 & 0xFF
    raise GuestTerminated(reason_set, code, describe_termination(reason_set, code), vcpu=vcpu.index, vmpl=context.vmpl)


_HANDLERS: dict[int, Callable[[Host, Vcpu, Context, int], int]] = {
    MsrRequest.SEV_INFO: _sev_info,
    MsrRequest.CPUID: _cpuid,
    MsrRequest.AP_RESET_HOLD: _ap_reset_hold,
    MsrRequest.PREFERRED_GPA: _preferred_gpa,
    MsrRequest.REGISTER_GPA: _register_gpa,
    MsrRequest.PAGE_STATE_CHANGE: _page_state_change,
    MsrRequest.RUN_VMPL: _run_vmpl,
    MsrRequest.HV_FEATURES: _hv_features,
    MsrRequest.TERMINATE: _terminate,
}


def handle_ghcb_msr(host: Host, vcpu: Vcpu, context: Context, request: int) -> None:
    """VMGEXIT with a request in the GHCB MSR."""
    code = request & MSR_INFO_MASK
    handler = _HANDLERS.get(code)
    if handler is None:
        host.counts.unknown_msr_requests += 1
    else:
        counts = host.counts.msr_requests
        counts[code] = counts.get(code, 0) + 1
        context.vmcb.ghcb_gpa = handler(host, vcpu, context, request)
    if host.on_event is not None:
        host.on_event(GhcbMsrEvent(vcpu.index, context.vmpl, request, context.vmcb.ghcb_gpa))
