# SPDX-License-Identifier: GPL-2.0-or-later
"""A request in a GHCB page: check it, give it to the module of its event's family, answer.

56421, sections 4 "GHCB Protocol" and 4.1 "Invoking VMGEXIT". The page is shared memory: a guest that means ill may
put anything there. It is copied once, and every field that an event needs must be marked valid in VALID_BITMAP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import GhcbReason, IoioInfo, NaeEvent
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.errors import MalformedGhcb
from veil.host.events import GhcbEvent
from veil.host.ghcb.events import ap, guest_request, ioio, mmio, msr, page_state_change, run_vmpl, small
from veil.host.ghcb.fields import GhcbFault, GhcbPage, InjectException, PortAnswer
from veil.host.vcpu import exception_event
from veil.snp.errors import RmpViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.hypervisor import Hypervisor
    from veil.host.vcpu import Context, Vcpu

__all__ = ["VERSION_MAX", "VERSION_MIN", "handle_ghcb_page"]

VERSION_MIN = 1
VERSION_MAX = 2

# SW_EXITINFO1[31:0] of an answer (56421, section 4.1).
_INJECT = 1
_MALFORMED = 2

_HANDLERS: dict[int, Callable[[Hypervisor, Vcpu, Context, GhcbPage], None]] = {
    NaeEvent.DR7_READ: small.dr7_read,
    NaeEvent.DR7_WRITE: small.dr7_write,
    NaeEvent.RDTSC: small.rdtsc,
    NaeEvent.RDPMC: small.rdpmc,
    NaeEvent.CPUID: small.cpuid,
    NaeEvent.INVD: small.nothing,
    NaeEvent.IOIO: ioio.ioio,
    NaeEvent.MSR: msr.msr,
    NaeEvent.VMMCALL: small.vmmcall,
    NaeEvent.RDTSCP: small.rdtscp,
    NaeEvent.WBINVD: small.nothing,
    NaeEvent.MONITOR: small.monitor,
    NaeEvent.MWAIT: small.mwait,
    NaeEvent.MMIO_READ: mmio.mmio_read,
    NaeEvent.MMIO_WRITE: mmio.mmio_write,
    NaeEvent.NMI_COMPLETE: small.nothing,
    NaeEvent.AP_RESET_HOLD: ap.reset_hold,
    NaeEvent.AP_JUMP_TABLE: ap.jump_table,
    NaeEvent.PAGE_STATE_CHANGE: page_state_change.page_state_change,
    NaeEvent.GUEST_REQUEST: guest_request.guest_request,
    NaeEvent.EXTENDED_GUEST_REQUEST: guest_request.extended_guest_request,
    NaeEvent.AP_CREATION: ap.creation,
    NaeEvent.APIC_IDS: ap.apic_ids,
    NaeEvent.RUN_VMPL: run_vmpl.run_vmpl,
    NaeEvent.HV_FEATURES: small.hypervisor_features,
    NaeEvent.TERMINATE: small.terminate,
    NaeEvent.UNSUPPORTED: small.unsupported,
}

_IOIO = int(NaeEvent.IOIO)
_SIZES = ioio.SIZES
_IN = int(IoioInfo.IN)
_NOT_SINGLE = ioio.NOT_SINGLE
_unpack_fields = PortAnswer.FIELDS.unpack_from
_unpack_trailer = PortAnswer.TRAILER.unpack_from
_unpack_rax = PortAnswer.RAX.unpack_from
_pack_rax = PortAnswer.RAX.pack
_FIELDS_AT = PortAnswer.FIELDS_AT
_TRAILER_AT = PortAnswer.TRAILER_AT
_RAX_AT = PortAnswer.RAX_AT
_RAX_VALID = PortAnswer.RAX_VALID
_REQUIRED = PortAnswer.REQUIRED
_ANSWER_AT = PortAnswer.ANSWER_AT
_SUCCESS = PortAnswer.SUCCESS
_KEPT = PortAnswer.KEPT
_OUT_BITMAP = PortAnswer.OUT_BITMAP
_IN_BITMAP = PortAnswer.IN_BITMAP
_STANDARD = {(version, 0) for version in range(VERSION_MIN, VERSION_MAX + 1)}
_MASKS = {size: (1 << 8 * size) - 1 for size in (1, 2, 4)}


def handle_ghcb_page(host: Hypervisor, vcpu: Vcpu, context: Context) -> None:
    """VMGEXIT with a GHCB page in the GHCB MSR."""
    gpa: int = context.vmcb.ghcb_gpa
    try:
        if gpa == context.ghcb and host.on_event is None:
            if not _single_port_access(host, context.vmpl, gpa):
                _answer(host, vcpu, context, gpa)
        else:
            _answer(host, vcpu, context, gpa)
    except RmpViolation as error:
        raise MalformedGhcb(
            f"the GHCB at {gpa:#x} is not shared memory of the guest ({error.reason}); "
            "make it shared by a page state change before VMGEXIT",
            vcpu=vcpu.index,
            vmpl=context.vmpl,
        ) from error


def _single_port_access(host: Hypervisor, vmpl: int, gpa: int) -> bool:
    """IN or OUT of one element, well formed; False (and nothing done) if the request is anything else."""
    view = host.view
    raw = view.read(gpa, PAGE_SIZE)
    code, info1, _, _, _, low, high = _unpack_fields(raw, _FIELDS_AT)
    if (
        code != _IOIO
        or info1 & _NOT_SINGLE
        or high & _REQUIRED != _REQUIRED
        or _unpack_trailer(raw, _TRAILER_AT) not in _STANDARD
    ):
        return False
    size = _SIZES.get(info1 & ioio.SIZE_MASK)
    if size is None:
        return False
    port = info1 >> 16 & 0xFFFF
    if info1 & _IN:
        value = host.platform.io_read(port, size, vmpl) & _MASKS[size]
        view.write(gpa + _RAX_AT, _pack_rax(value))
        view.write(gpa + _ANSWER_AT, _SUCCESS + raw[_KEPT] + _IN_BITMAP)
    elif low & _RAX_VALID:
        host.platform.io_write(port, size, _unpack_rax(raw, _RAX_AT)[0] & _MASKS[size], vmpl)
        view.write(gpa + _ANSWER_AT, _SUCCESS + raw[_KEPT] + _OUT_BITMAP)
    else:
        return False
    host.port_accesses += 1
    host.device_accessed = True
    return True


def _answer(host: Hypervisor, vcpu: Vcpu, context: Context, gpa: int) -> None:
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
        ghcb.check_header(VERSION_MIN, VERSION_MAX)
        handler = _HANDLERS.get(code)
        if handler is None:
            raise GhcbFault(GhcbReason.INVALID_EVENT)
        # Only known codes are counted: a guest must not be able to fill the host's memory with counters.
        host.nae_counts[code] = host.nae_counts.get(code, 0) + 1
        handler(host, vcpu, context, ghcb)
        results = (0, ghcb.result2)
    except GhcbFault as fault:
        results = (_MALFORMED, int(fault.reason))
    except InjectException as injected:
        results = (_INJECT, exception_event(injected.vector, injected.error_code))
    ghcb.finish(*results)
    if host.on_event is not None:
        host.on_event(GhcbEvent(vcpu.index, context.vmpl, code, ghcb.info1, ghcb.info2, *results))
