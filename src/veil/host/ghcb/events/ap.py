# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting and stopping VCPUs (56421, "SNP AP Creation", "AP Reset Hold", "AP Jump Table", "APIC ID List")."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from veil.formats.domains import VMPLS
from veil.formats.ghcb import AP_CREATION_APIC_ID_SHIFT, AP_CREATION_VMPL_SHIFT, ApRequest, GhcbReason
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.ghcb.fields import GhcbFault
from veil.host.observer_events import ApCreationEvent
from veil.host.vcpu import Hold, RunState
from veil.snp.layouts import SevFeatures

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["apic_ids", "creation", "jump_table", "reset_hold"]


def _invalid() -> GhcbFault:
    return GhcbFault(GhcbReason.INVALID_INPUT)


def creation(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1: APIC ID 63:32, VMPL 19:16, request 15:0; SW_EXITINFO2: the VMSA; RAX: its SEV_FEATURES.

    Contexts of VMPL 2 under a kernel of VMPL 3 belong to no VCPU: to create one is to register it.
    """
    info = ghcb.exit_info_1
    request, vmpl = info & 0xFFFF, info >> AP_CREATION_VMPL_SHIFT & 0xF
    target = host.vcpu_by_apic_id(info >> AP_CREATION_APIC_ID_SHIFT)
    if target is None or vmpl >= VMPLS or info & 0xFFF00000:
        raise _invalid()
    # A level must not take the VMSA of a more privileged one out of use: with that, a compromised kernel could switch
    # its monitor off and have its requests answered by nobody, or by a VMSA that it prepared.
    if vmpl < context.vmpl:
        raise _invalid()
    vmsa: int | None = ghcb.exit_info_2
    if vmpl == host.enclave_vmpl:
        _enclave(host, vcpu, context, target, request, ghcb)
        vmsa = vmsa if request == ApRequest.CREATE else None
    elif request == ApRequest.DESTROY:
        vmsa = None
        target.drop_vmsa(vmpl)
        host.reschedule = True
    elif request in (ApRequest.CREATE, ApRequest.CREATE_ON_INIT):
        _check_vmsa(host, vcpu, context, target, vmpl, ghcb)
        created = host.create_context(target, vmpl, ghcb.exit_info_2)
        created.restricted = bool(ghcb.rax & SevFeatures.RESTRICTED_INJECTION)
        if request == ApRequest.CREATE:
            _start(host, vcpu, target, vmpl)
        elif vmpl == context.vmpl:
            created.on_init = True
            if target.current is created:
                target.state = RunState.WAIT_SIPI
        # A monitor's guest waits for nothing but the monitor, which has it run: so it is with KVM, and so COCONUT-SVSM
        # registers it.
    else:
        raise _invalid()
    if host.on_event is not None:
        host.on_event(ApCreationEvent(vcpu.index, context.vmpl, target.index, vmpl, vmsa))


def _enclave(host: Host, vcpu: Vcpu, context: Context, target: Vcpu, request: int, ghcb: GhcbPage) -> None:
    gpa = ghcb.exit_info_2
    if request == ApRequest.CREATE:
        _check_vmsa(host, vcpu, context, target, host.enclave_vmpl, ghcb)
        host.drop_enclave(gpa)
        host.enclaves.add(gpa)
    elif request != ApRequest.DESTROY or not host.drop_enclave(gpa):
        raise _invalid()


def _check_vmsa(host: Host, vcpu: Vcpu, context: Context, target: Vcpu, vmpl: int, ghcb: GhcbPage) -> None:
    # The features themselves are the guest's affair: VMRUN reads them from the VMSA.
    if not ghcb.rax & SevFeatures.SNP:
        raise _invalid()
    gpa = ghcb.exit_info_2
    if gpa % PAGE_SIZE or not host.may_name(context, gpa, PAGE_SIZE) or host.view.is_shared(gpa, PAGE_SIZE):
        raise _invalid()
    # The request's own context would be replaced under its feet.
    if target is vcpu and vmpl == context.vmpl:
        raise _invalid()


def _start(host: Host, vcpu: Vcpu, target: Vcpu, vmpl: int) -> None:
    """Let the new context run, unless its VCPU is busy at a more privileged level, which will switch to it.

    One that has halted wakes up for that, as KVM makes the VCPU runnable: COCONUT-SVSM halts until it has a guest.
    """
    if target is vcpu:
        return
    if not target.is_busy_above(vmpl):
        target.start(vmpl)
    elif target.state == RunState.HALTED:
        target.state = RunState.RUNNABLE
    host.reschedule = True


def reset_hold(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """The VCPU waits for a SIPI, which makes SW_EXITINFO2 nonzero."""
    context.hold = Hold.NAE
    vcpu.state = RunState.WAIT_SIPI


def jump_table(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1 0: keep SW_EXITINFO2 as the AP jump table's address; 1: tell it."""
    if ghcb.exit_info_1 == 0:
        host.ap_jump_table = ghcb.exit_info_2
    elif ghcb.exit_info_1 == 1:
        ghcb.result2 = host.ap_jump_table
    else:
        raise _invalid()


def apic_ids(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """The list of APIC IDs into the RAX pages at SW_EXITINFO1; with too few pages, only how many it takes."""
    ids = [each.apic_id for each in host.vcpus]
    data = struct.pack(f"<I{len(ids)}I", len(ids), *ids)
    needed = -(-len(data) // PAGE_SIZE)
    offered = ghcb.rax
    if offered >= needed:
        gpa = ghcb.exit_info_1
        if gpa % PAGE_SIZE or not ghcb.may_use(gpa, needed * PAGE_SIZE):
            raise _invalid()
        ghcb.view.write(gpa, data)
    ghcb.set_rax(needed)
