# SPDX-License-Identifier: GPL-2.0-or-later
"""The GHCB MSR protocol (56421, section 2.3 "GHCB MSR Protocol"): requests in the GHCB MSR itself.

Bits 11:0 of the MSR are the request (even codes) or the answer (odd codes); 0 there means a GHCB page instead. A
request that the host does not know leaves the MSR as it is, which no guest mistakes for an answer.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from veil.host.errors import GuestTerminated
from veil.host.events import GhcbMsrEvent
from veil.host.ghcb.page import VERSION_MAX, VERSION_MIN
from veil.host.page_state import PAGE_4K
from veil.host.termination import termination_words
from veil.host.vcpu import Hold, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.hypervisor import Hypervisor
    from veil.host.vcpu import Context, Vcpu

__all__ = ["MsrRequest", "handle_ghcb_msr"]

INFO_MASK = 0xFFF
C_BIT = 51

_MASK_32 = 0xFFFFFFFF
_MASK_52 = (1 << 52) - 1
_PFN_MASK = _MASK_52 << 12
_PSC_PRIVATE = 1
_PSC_SHARED = 2
_ERROR = 1 << 32


class MsrRequest(enum.IntEnum):
    """Bits 11:0 of a request; the answer's code is one more, but for SEV information, where it is one less."""

    SEV_INFO = 0x002
    CPUID = 0x004
    AP_RESET_HOLD = 0x006
    PREFERRED_GPA = 0x010
    REGISTER_GPA = 0x012
    PAGE_STATE_CHANGE = 0x014
    RUN_VMPL = 0x016
    HV_FEATURES = 0x080
    TERMINATE = 0x100


def _sev_info(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    return VERSION_MAX << 48 | VERSION_MIN << 32 | C_BIT << 24 | 0x001


def _cpuid(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    register = value >> 30 & 3
    answer = host.cpuid.answer(value >> 32, 0, vcpu.apic_id)
    return (answer[register] & _MASK_32) << 32 | register << 30 | 0x005


def _ap_reset_hold(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    context.hold = Hold.MSR
    vcpu.state = RunState.WAIT_SIPI
    return ap_reset_hold_answer(started=False)


def ap_reset_hold_answer(*, started: bool) -> int:
    """Bits 63:12 are nonzero when a SIPI ended the hold."""
    return int(started) << 12 | 0x007


def _preferred_gpa(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    # All ones: the host has no preference, the guest chooses.
    return _PFN_MASK | 0x011


def _register_gpa(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    gpa = value & _PFN_MASK
    # All ones in the answer: refused. The page may still be private, guests register before or after sharing it.
    if not gpa or not host.may_name(context, gpa, PAGE_4K):
        return _PFN_MASK | 0x013
    context.ghcb = gpa
    return gpa | 0x013


def _page_state_change(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    operation = value >> 52 & 0xF
    gpa = value & (1 << 52) - PAGE_4K
    if value >> 56 or operation not in (_PSC_PRIVATE, _PSC_SHARED) or not host.may_name(context, gpa, PAGE_4K):
        return _ERROR | 0x015
    if not host.change_page(vcpu, context, gpa, private=operation == _PSC_PRIVATE, large=False):
        return _ERROR | 0x015
    return 0x015


def _run_vmpl(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    # Bits 31:12 and 63:40 must be zero; they would make the level a large number or go unnoticed.
    if value & 0xFFFFF000 or not host.switch_vmpl(vcpu, context, value >> 32):
        return _ERROR | 0x017
    return 0x017


def _hv_features(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    return host.features << 12 | 0x081


def _terminate(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
    reason_set, code = value >> 12 & 0xF, value >> 16 & 0xFF
    raise GuestTerminated(reason_set, code, termination_words(reason_set, code), vcpu=vcpu.index, vmpl=context.vmpl)


_HANDLERS: dict[int, Callable[[Hypervisor, Vcpu, Context, int], int]] = {
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


def handle_ghcb_msr(host: Hypervisor, vcpu: Vcpu, context: Context) -> None:
    """VMGEXIT with a request in the GHCB MSR."""
    vmcb = context.vmcb
    request: int = vmcb.ghcb_gpa
    code = request & INFO_MASK
    handler = _HANDLERS.get(code)
    if handler is None:
        host.unknown_msr_requests += 1
    else:
        counts = host.msr_counts
        counts[code] = counts.get(code, 0) + 1
        vmcb.ghcb_gpa = handler(host, vcpu, context, request)
    if host.on_event is not None:
        host.on_event(GhcbMsrEvent(vcpu.index, context.vmpl, request, vmcb.ghcb_gpa))
