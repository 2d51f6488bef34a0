# SPDX-License-Identifier: GPL-2.0-or-later
"""Core protocol: CREATE_VCPU and DELETE_VCPU (58019, sections 6.3 and 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.domains import KERNEL_VMPL, Domain
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import Efer
from veil.monitor.page_book import Owner
from veil.monitor.svsm_call import ResultCode, SvsmRequest, SvsmResult
from veil.snp.errors import RmpViolation
from veil.snp.layouts import Vmsa
from veil.snp.rmp import RmpResult

if TYPE_CHECKING:
    from veil.monitor.contexts import VcpuContexts
    from veil.monitor.state import MonitorState
    from veil.snp.view import View

__all__ = ["create_vcpu", "delete_vcpu"]

_SVME = int(Efer.SVME)
_EFER = Vmsa.efer.offset


def create_vcpu(state: MonitorState, view: View, request: SvsmRequest) -> SvsmResult:
    """RCX: the page that becomes the VMSA, RDX: its calling area, R8: the APIC ID."""
    vmsa, caa = request.rcx, request.rdx
    if vmsa % PAGE_SIZE or caa % PAGE_SIZE or vmsa == caa:
        return SvsmResult(ResultCode.INVALID_ADDRESS)
    target = state.domains.by_apic_id(request.r8)
    if target is None:
        return SvsmResult(ResultCode.INVALID_PARAMETER)
    if not state.book.is_kernel(vmsa, PAGE_SIZE) or not _may_be_caa(state, target, caa):
        return SvsmResult(ResultCode.INVALID_ADDRESS)
    # Raises if the area is not validated memory; nothing is done yet.
    view.read_u64(caa)

    # The page is out of the kernel's reach before it is looked at, so that what is checked is what will run. From here
    # on PVALIDATE refuses it: else the kernel could have it back, with write permission, while it is being checked.
    state.book.move(vmsa, PAGE_SIZE, Owner.VMSA)
    try:
        good = _seal(state, view, vmsa)
    except RmpViolation:
        state.book.move(vmsa, PAGE_SIZE, Owner.KERNEL)
        raise
    if not good:
        view.rmpadjust(vmsa, vmpl=KERNEL_VMPL, permissions=state.rows.permissions(Owner.KERNEL, Domain.UNT))
        state.book.move(vmsa, PAGE_SIZE, Owner.KERNEL)
        return SvsmResult(ResultCode.INVALID_PARAMETER)
    view.write_u64(caa, 0)
    state.register_kernel(target.apic_id, vmsa, caa)
    if state.hearing is not None:
        state.hearing.created(target.apic_id, vmsa)
    return SvsmResult(ResultCode.SUCCESS)


def _may_be_caa(state: MonitorState, target: VcpuContexts, gpa: int) -> bool:
    """A free page of the kernel, or the area that this VCPU has already: Linux keeps it when a CPU comes back."""
    return state.book.is_kernel(gpa, PAGE_SIZE) or gpa in target.kernel.vmsas.values()


def _seal(state: MonitorState, view: View, gpa: int) -> bool:
    sealed = state.rows.permissions(Owner.VMSA, Domain.UNT)
    if view.rmpadjust(gpa, vmpl=KERNEL_VMPL, permissions=sealed) != RmpResult.SUCCESS:
        return False
    vmsa = Vmsa.from_buffer_copy(view.read(gpa, PAGE_SIZE))
    # With another VMPL in it the kernel would have made itself a context of VMPL 0.
    if vmsa.vmpl != KERNEL_VMPL or not vmsa.efer & _SVME or vmsa.sev_features != state.sev_features:
        return False
    # The kernel wrote the page. How the context left is the hardware's word alone: none was entered yet.
    view.write_u64(gpa + Vmsa.guest_exit_code.offset, 0)
    return view.rmpadjust(gpa, vmpl=KERNEL_VMPL, permissions=sealed, vmsa=True) == RmpResult.SUCCESS


def delete_vcpu(state: MonitorState, view: View, request: SvsmRequest) -> SvsmResult:
    """RCX: the VMSA, which becomes ordinary memory again."""
    vmsa = request.rcx
    holder = state.domains.holder(Domain.UNT, vmsa)
    if holder is None:
        return SvsmResult(ResultCode.INVALID_PARAMETER)
    if holder.apic_id == request.vcpu and holder.kernel.vmsa == vmsa:
        # The caller itself: it is to get this answer, in this VMSA.
        return SvsmResult(ResultCode.INVALID_PARAMETER)
    if holder.unfinished == vmsa:
        # Its page would be the kernel's again, perhaps another VMSA, when the answer is written into it.
        return SvsmResult(ResultCode.BUSY)
    # The boot VCPU's VMSA is in the monitor's own region.
    after = Owner.MONITOR if state.parameters.monitor.contains(vmsa, PAGE_SIZE) else Owner.KERNEL
    efer = view.read_u64(vmsa + _EFER)
    # Without SVME no VMRUN enters it any more, whatever the host tries before the attribute is gone.
    view.write_u64(vmsa + _EFER, efer & ~_SVME)
    code = view.rmpadjust(vmsa, vmpl=KERNEL_VMPL, permissions=state.rows.permissions(after, Domain.UNT))
    if code != RmpResult.SUCCESS:
        view.write_u64(vmsa + _EFER, efer)
        return SvsmResult(ResultCode.FAIL_INUSE if code == RmpResult.FAIL_INUSE else ResultCode.INVALID_REQUEST)
    state.book.move(vmsa, PAGE_SIZE, after)
    caa = holder.kernel.drop(vmsa)
    assert caa is not None
    state.release_caa(caa)
    if state.hearing is not None:
        state.hearing.deleted(holder.apic_id, vmsa)
    return SvsmResult(ResultCode.SUCCESS)
