# SPDX-License-Identifier: GPL-2.0-or-later
"""Core protocol: CREATE_VCPU and DELETE_VCPU (58019, sections 6.3 and 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.monitor.memory import GUEST_VMPL, PAGE
from veil.monitor.pages import Owner
from veil.monitor.requests import Request, Result, ResultCode
from veil.snp.errors import RmpViolation
from veil.snp.layouts import Vmsa
from veil.snp.rmp import Permission, RmpResult

if TYPE_CHECKING:
    from veil.monitor.veilmon import VeilMon
    from veil.snp.view import View

__all__ = ["create_vcpu", "delete_vcpu"]

_SVME = 1 << 12
_EFER = Vmsa.efer.offset


def create_vcpu(monitor: VeilMon, view: View, request: Request) -> Result:
    """RCX: the page that becomes the VMSA, RDX: its calling area, R8: the APIC ID."""
    vmsa, caa, apic_id = request.rcx, request.rdx, request.r8
    if vmsa % PAGE or caa % PAGE or vmsa == caa:
        return Result(ResultCode.INVALID_PARAMETER)
    target = monitor.domains.by_apic_id(apic_id)
    if target is None:
        return Result(ResultCode.INVALID_PARAMETER)
    if not monitor.book.is_guest(vmsa, PAGE) or not monitor.book.is_guest(caa, PAGE):
        return Result(ResultCode.INVALID_ADDRESS)

    # The order matters: the page is out of the guest's reach before it is read, so what is checked is what will run.
    # Reading it stays allowed: Linux looks at sev_features after this call.
    monitor.book.claim(vmsa, PAGE, Owner.VMSA)
    try:
        good = _seal(monitor, view, vmsa)
        if good:
            view.write_u64(caa, 0)
    except RmpViolation:
        monitor.book.claim(vmsa, PAGE, Owner.GUEST)
        raise
    if not good:
        view.rmpadjust(vmsa, vmpl=GUEST_VMPL, permissions=Permission.ALL)
        monitor.book.claim(vmsa, PAGE, Owner.GUEST)
        return Result(ResultCode.INVALID_PARAMETER)
    target.guest_vmsas[vmsa] = caa
    # The kernel's first CPU goes on where it is; a CPU that comes back uses the new context from now on.
    target.guest_vmsa, target.caa = vmsa, caa
    return Result(ResultCode.SUCCESS)


def _seal(monitor: VeilMon, view: View, gpa: int) -> bool:
    if view.rmpadjust(gpa, vmpl=GUEST_VMPL, permissions=Permission.R) != RmpResult.SUCCESS:
        return False
    vmsa = Vmsa.from_buffer_copy(view.read(gpa, PAGE))
    if vmsa.vmpl != GUEST_VMPL or not vmsa.efer & _SVME or vmsa.sev_features != monitor.sev_features:
        return False
    return view.rmpadjust(gpa, vmpl=GUEST_VMPL, permissions=Permission.R, vmsa=True) == RmpResult.SUCCESS


def delete_vcpu(monitor: VeilMon, view: View, request: Request) -> Result:
    """RCX: the VMSA, which becomes ordinary memory of the guest's again."""
    vmsa = request.rcx
    holder = monitor.domains.holder(vmsa)
    if vmsa % PAGE or holder is None:
        return Result(ResultCode.INVALID_PARAMETER)
    if holder.apic_id == request.vcpu and holder.guest_vmsa == vmsa:
        # A context cannot delete itself: it is to get this answer.
        return Result(ResultCode.INVALID_PARAMETER)
    efer = view.read_u64(vmsa + _EFER)
    # Without SVME no VMRUN enters it, whatever the host does before the attribute is gone.
    view.write_u64(vmsa + _EFER, efer & ~_SVME)
    code = view.rmpadjust(vmsa, vmpl=GUEST_VMPL, permissions=Permission.ALL)
    if code != RmpResult.SUCCESS:
        view.write_u64(vmsa + _EFER, efer)
        return Result(ResultCode.INVALID_REQUEST if code != RmpResult.FAIL_INUSE else ResultCode.BUSY)
    del holder.guest_vmsas[vmsa]
    if holder.guest_vmsa == vmsa:
        holder.guest_vmsa = holder.caa = None
    monitor.book.claim(vmsa, PAGE, Owner.GUEST)
    return Result(ResultCode.SUCCESS)
