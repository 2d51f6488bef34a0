# SPDX-License-Identifier: GPL-2.0-or-later
"""Core protocol: REMAP_CA and PVALIDATE (58019, sections 6.1 and 6.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from veil.formats.domains import KERNEL_VMPL, Domain
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.monitor.page_book import Owner
from veil.monitor.svsm_call import ResultCode, SvsmRequest, SvsmResult
from veil.snp.errors import RmpViolation
from veil.snp.rmp import FAULT_NOT_VALIDATED, PageSize, Permission, RmpResult

if TYPE_CHECKING:
    from veil.monitor.state import MonitorState
    from veil.snp.view import View

__all__ = ["pvalidate", "remap_ca"]

_HEADER = struct.Struct("<HHI")
_ENTRY_BYTES = 8
_NEXT_OFFSET = 2

_SIZE_MASK = 0x3
_SIZE_2M = 1
_VALIDATE = 1 << 2
_IGNORE_CF = 1 << 3
_MUST_BE_ZERO = 0xFF0
_PFN_MASK = ~(PAGE_SIZE - 1)

_SMALL, _LARGE = PageSize.SIZE_4K, PageSize.SIZE_2M
_ZERO_PAGE = bytes(PAGE_SIZE)
_NONE = Permission.NONE

_SUCCESS = ResultCode.SUCCESS
_CODES = {
    RmpResult.FAIL_INPUT: ResultCode.FAIL_INPUT,
    RmpResult.FAIL_PERMISSION: ResultCode.FAIL_PERMISSION,
    RmpResult.FAIL_INUSE: ResultCode.FAIL_INUSE,
    RmpResult.FAIL_SIZEMISMATCH: ResultCode.FAIL_SIZE_MISMATCH,
}


def remap_ca(state: MonitorState, view: View, request: SvsmRequest) -> SvsmResult:
    """RCX: the calling area's new page. The area in use stays valid until the new one is found good."""
    gpa = request.rcx
    if gpa % PAGE_SIZE:
        return SvsmResult(ResultCode.INVALID_PARAMETER)
    vcpu = state.domains.vcpus[request.vcpu]
    if gpa == vcpu.kernel.caa:
        return SvsmResult(_SUCCESS)
    # Not a VMSA, nor another context's area: what one VCPU's kernel writes there must not be another one's call.
    if not state.book.is_kernel(gpa, PAGE_SIZE):
        return SvsmResult(ResultCode.INVALID_ADDRESS)
    # Raises if the page is not validated: the caller gets INVALID_ADDRESS and keeps its area.
    view.write_u64(gpa, 0)
    state.book.move(gpa, PAGE_SIZE, Owner.CAA)
    old = vcpu.kernel.remap(gpa)
    if old is not None:
        state.release_caa(old)
    return SvsmResult(_SUCCESS)


def pvalidate(state: MonitorState, view: View, request: SvsmRequest) -> SvsmResult:
    """RCX: the list's address. `next` counts the entries done, so that a call can go on where another one stopped.

    The list is in memory that other VCPUs of the kernel can change meanwhile: it is read once, then used.
    """
    gpa = request.rcx
    room = (PAGE_SIZE - _HEADER.size - (gpa & PAGE_SIZE - 1)) // _ENTRY_BYTES
    if gpa % 8 or room < 1:
        return SvsmResult(ResultCode.INVALID_PARAMETER)
    if not state.book.is_kernel_data(gpa):
        return SvsmResult(ResultCode.INVALID_ADDRESS)
    entries, first, reserved = _HEADER.unpack(view.read(gpa, _HEADER.size))
    if not first < entries <= room or reserved:
        return SvsmResult(ResultCode.INVALID_PARAMETER)
    count = entries - first
    start = gpa + _HEADER.size + first * _ENTRY_BYTES
    done = first
    code = _SUCCESS
    changes = struct.unpack(f"<{count}Q", view.read(start, count * _ENTRY_BYTES))
    try:
        for entry in changes:
            code = _change(state, view, entry)
            if code:
                break
            done += 1
    finally:
        if done != first:
            view.write_u16(gpa + _NEXT_OFFSET, done)
            if state.hearing is not None:
                for entry in changes[: done - first]:
                    size = PAGE_SIZE_2M if entry & _SIZE_MASK else PAGE_SIZE
                    state.hearing.pages(request.vcpu, entry & _PFN_MASK, size, taken=bool(entry & _VALIDATE))
    return SvsmResult(code)


def _change(state: MonitorState, view: View, entry: int) -> ResultCode:
    if entry & _MUST_BE_ZERO or entry & _SIZE_MASK > _SIZE_2M:
        return ResultCode.INVALID_PARAMETER
    large = entry & _SIZE_MASK
    gpa = entry & _PFN_MASK
    if large and gpa % PAGE_SIZE_2M:
        return ResultCode.INVALID_PARAMETER
    # Never a page of the monitor's or the services', a VMSA or a calling area: once it is invalid, the host may put
    # memory of its own choice in its place, and once it is valid again, the kernel may use it.
    if not state.book.is_kernel(gpa, PAGE_SIZE_2M if large else PAGE_SIZE):
        return ResultCode.INVALID_ADDRESS
    size = _LARGE if large else _SMALL
    try:
        code, unchanged = _validate(view, gpa, size) if entry & _VALIDATE else _invalidate(view, gpa, size)
    except RmpViolation as violation:
        if not violation.fault & FAULT_NOT_VALIDATED:
            raise
        code, unchanged = RmpResult.SUCCESS, True
    if code:
        return _CODES.get(code, ResultCode.INVALID_REQUEST)
    if unchanged and not entry & _IGNORE_CF:
        return ResultCode.FAIL_UNCHANGED
    if not entry & _VALIDATE:
        return _SUCCESS
    # Zero it before anybody else sees it. The host chose which memory stands behind this address, and had it chosen a
    # page that VMPL 0 used elsewhere, the kernel would read VMPL 0's secrets.
    if large:
        view.zero(gpa, PAGE_SIZE_2M)
    else:
        view.write(gpa, _ZERO_PAGE)
    code = view.rmpadjust(
        gpa, size=size, vmpl=KERNEL_VMPL, permissions=state.rows.permissions(Owner.KERNEL, Domain.UNT)
    )
    return _CODES.get(code, ResultCode.INVALID_REQUEST) if code else _SUCCESS


def _validate(view: View, gpa: int, size: PageSize) -> tuple[RmpResult, bool]:
    return view.pvalidate(gpa, size=size, validate=True)


def _invalidate(view: View, gpa: int, size: PageSize) -> tuple[RmpResult, bool]:
    # Permissions outlive PVALIDATE. Were the kernel's left in place, then a page that VMPL 0 validates here later would
    # be open to it at once.
    code = view.rmpadjust(gpa, size=size, vmpl=KERNEL_VMPL, permissions=_NONE)
    if code:
        return code, False
    return view.pvalidate(gpa, size=size, validate=False)
