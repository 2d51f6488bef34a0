# SPDX-License-Identifier: GPL-2.0-or-later
"""A request in a GHCB page: check it, give it to the module of its event's family, answer.

56421, sections 4 "GHCB Protocol" and 4.1 "Invoking VMGEXIT". The page is shared memory: a guest that means ill may
put anything there. It is copied once, and every field that an event needs must be marked valid in VALID_BITMAP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import GhcbReason, NaeEvent
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.errors import MalformedGhcb
from veil.host.ghcb.events import (
    ap,
    features,
    guest_request,
    instructions,
    ioio,
    mmio,
    msr,
    page_state_change,
    restricted_injection,
    run_vmpl,
    termination,
)
from veil.host.ghcb.fields import GhcbFault, GhcbPage, InjectException
from veil.host.ghcb.port_access import answer_port_access
from veil.host.observer_events import GhcbEvent
from veil.host.vcpu import exception_event
from veil.snp.errors import RmpViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["handle_ghcb_page"]

# SW_EXITINFO1[31:0] of an answer (56421, section 4.1).
_INJECT = 1
_MALFORMED = 2

_HANDLERS: dict[int, Callable[[Host, Vcpu, Context, GhcbPage], None]] = {
    NaeEvent.DR7_READ: instructions.dr7_read,
    NaeEvent.DR7_WRITE: instructions.dr7_write,
    NaeEvent.RDTSC: instructions.rdtsc,
    NaeEvent.RDPMC: instructions.rdpmc,
    NaeEvent.CPUID: instructions.cpuid,
    NaeEvent.INVD: instructions.acknowledge,
    NaeEvent.IOIO: ioio.ioio,
    NaeEvent.MSR: msr.msr,
    NaeEvent.VMMCALL: instructions.vmmcall,
    NaeEvent.RDTSCP: instructions.rdtscp,
    NaeEvent.WBINVD: instructions.acknowledge,
    NaeEvent.MONITOR: instructions.monitor,
    NaeEvent.MWAIT: instructions.mwait,
    NaeEvent.MMIO_READ: mmio.mmio_read,
    NaeEvent.MMIO_WRITE: mmio.mmio_write,
    NaeEvent.NMI_COMPLETE: instructions.acknowledge,
    NaeEvent.AP_RESET_HOLD: ap.reset_hold,
    NaeEvent.AP_JUMP_TABLE: ap.jump_table,
    NaeEvent.PAGE_STATE_CHANGE: page_state_change.page_state_change,
    NaeEvent.GUEST_REQUEST: guest_request.guest_request,
    NaeEvent.EXTENDED_GUEST_REQUEST: guest_request.extended_guest_request,
    NaeEvent.AP_CREATION: ap.creation,
    NaeEvent.HV_DOORBELL: restricted_injection.doorbell_page,
    NaeEvent.HV_IPI: restricted_injection.send_ipi,
    NaeEvent.APIC_IDS: ap.apic_ids,
    NaeEvent.RUN_VMPL: run_vmpl.run_vmpl,
    NaeEvent.HV_FEATURES: features.hypervisor_features,
    NaeEvent.TERMINATE: termination.terminate,
    NaeEvent.UNSUPPORTED: termination.unsupported,
}


def handle_ghcb_page(host: Host, vcpu: Vcpu, context: Context) -> None:
    """VMGEXIT with a GHCB page in the GHCB MSR."""
    gpa: int = context.vmcb.ghcb_gpa
    try:
        # An observer hears of each request; the quick way tells nobody.
        if gpa != context.ghcb or host.on_event is not None or not answer_port_access(host, context.vmpl, gpa):
            _answer(host, vcpu, context, gpa)
    except RmpViolation as error:
        raise MalformedGhcb(
            f"the GHCB at {gpa:#x} is not shared memory of the guest ({error.reason}); "
            "make it shared by a page state change before VMGEXIT",
            vcpu=vcpu.index,
            vmpl=context.vmpl,
        ) from error


def _answer(host: Host, vcpu: Vcpu, context: Context, gpa: int) -> None:
    allows, is_shared, vmpl = host.protection.allows, host.view.is_shared, context.vmpl

    def may_use(start: int, length: int) -> bool:
        return is_shared(start, length) and allows(vmpl, start, length)

    if not may_use(gpa, PAGE_SIZE):
        # Even the answer "not registered" would be written into it.
        raise MalformedGhcb(
            f"the GHCB at {gpa:#x} is private, outside of guest memory, or a more privileged level's; "
            "make a page of your own shared by a page state change before VMGEXIT",
            vcpu=vcpu.index,
            vmpl=vmpl,
        )
    ghcb = GhcbPage(host.view, gpa, may_use)
    code = ghcb.exit_code
    try:
        if gpa != context.ghcb:
            raise GhcbFault(GhcbReason.NOT_REGISTERED)
        ghcb.check_header()
        handler = _HANDLERS.get(code)
        if handler is None:
            raise GhcbFault(GhcbReason.INVALID_EVENT)
        # Only known codes are counted: a guest must not be able to fill the host's memory with counters.
        host.counts.nae_events[code] = host.counts.nae_events.get(code, 0) + 1
        handler(host, vcpu, context, ghcb)
        results = (0, ghcb.result2)
    except GhcbFault as fault:
        results = (_MALFORMED, int(fault.reason))
    except InjectException as injected:
        results = (_INJECT, exception_event(injected.vector, injected.error_code))
    ghcb.finish(*results)
    if host.on_event is not None:
        host.on_event(GhcbEvent(vcpu.index, context.vmpl, code, ghcb.exit_info_1, ghcb.exit_info_2, *results))
