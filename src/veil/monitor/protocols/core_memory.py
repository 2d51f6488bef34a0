# SPDX-License-Identifier: GPL-2.0-or-later
"""Core protocol: REMAP_CA and PVALIDATE (58019, sections 6.1 and 6.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from veil.monitor.memory import GUEST_VMPL, PAGE
from veil.monitor.requests import Request, Result, ResultCode
from veil.snp.errors import RmpViolation
from veil.snp.rmp import FAULT_SIZEM, PageSize, Permission, RmpResult

if TYPE_CHECKING:
    from veil.monitor.veilmon import VeilMon
    from veil.snp.view import View

__all__ = ["pvalidate", "remap_ca"]

_HEADER = struct.Struct("<HHI")
_ENTRY = struct.Struct("<Q")
_NEXT_OFFSET = 2

_SIZE_MASK = 0x3
_VALIDATE = 1 << 2
_IGNORE_CF = 1 << 3
_MUST_BE_ZERO = 0xFF0

_CODES = {
    RmpResult.FAIL_INPUT: ResultCode.PVALIDATE_FAIL_INPUT,
    RmpResult.FAIL_SIZEMISMATCH: ResultCode.PVALIDATE_FAIL_SIZE_MISMATCH,
}


def remap_ca(monitor: VeilMon, view: View, request: Request) -> Result:
    """RCX: the calling area's new page. The area in use stays valid until the new one is found good."""
    gpa = request.rcx
    vcpu = monitor.domains.by_apic_id(request.vcpu)
    if gpa % PAGE:
        return Result(ResultCode.INVALID_PARAMETER)
    if vcpu is None or not monitor.book.is_guest(gpa, PAGE):
        return Result(ResultCode.INVALID_ADDRESS)
    if gpa == vcpu.caa:
        return Result(ResultCode.SUCCESS)
    # Raises if the page is not validated: the caller gets INVALID_ADDRESS and keeps its area.
    view.write_u64(gpa, 0)
    if vcpu.caa is not None:
        old = vcpu.caa
        vcpu.caa = gpa
        view.exchange_u8(old, 0)
    vcpu.caa = gpa
    if vcpu.guest_vmsa is not None:
        vcpu.guest_vmsas[vcpu.guest_vmsa] = gpa
    return Result(ResultCode.SUCCESS)


def pvalidate(monitor: VeilMon, view: View, request: Request) -> Result:
    """RCX: the list's address. `next` is written back after each entry, so an interrupted call goes on where it was.

    The list is in memory that other VCPUs of the guest can change meanwhile: each entry is read once, and `entries`
    once for the whole call.
    """
    gpa = request.rcx
    if gpa % 8 or gpa & (PAGE - 1) > PAGE - _HEADER.size - _ENTRY.size:
        return Result(ResultCode.INVALID_PARAMETER)
    if not monitor.book.is_guest(gpa, _HEADER.size):
        return Result(ResultCode.INVALID_ADDRESS)
    entries, following, reserved = _HEADER.unpack(view.read(gpa, _HEADER.size))
    room = (PAGE - (gpa & (PAGE - 1)) - _HEADER.size) // _ENTRY.size
    if entries == 0 or entries <= following or entries > room or reserved:
        return Result(ResultCode.INVALID_PARAMETER)
    data = view.read(gpa + _HEADER.size, entries * _ENTRY.size)
    for index in range(following, entries):
        code = _one(monitor, view, _ENTRY.unpack_from(data, index * _ENTRY.size)[0])
        if code != ResultCode.SUCCESS:
            return Result(code)
        view.write_u16(gpa + _NEXT_OFFSET, index + 1)
    return Result(ResultCode.SUCCESS)


def _one(monitor: VeilMon, view: View, entry: int) -> int:
    if entry & _MUST_BE_ZERO or entry & _SIZE_MASK > PageSize.SIZE_2M:
        return ResultCode.INVALID_PARAMETER
    size = PageSize(entry & _SIZE_MASK)
    length = size.pages * PAGE
    gpa = entry & ~0xFFF
    if gpa % length:
        return ResultCode.INVALID_PARAMETER
    # Never a page of the monitor's or the services', nor a VMSA: invalidating one would let the host replace it.
    if not monitor.book.is_guest(gpa, length):
        return ResultCode.INVALID_ADDRESS
    validate = bool(entry & _VALIDATE)
    try:
        if not validate:
            # Before PVALIDATE: afterwards the host may remap the page while the guest's other VCPUs still reach it.
            code = view.rmpadjust(gpa, size=size, vmpl=GUEST_VMPL, permissions=Permission.NONE)
            if code != RmpResult.SUCCESS:
                return _CODES.get(code, ResultCode.INVALID_REQUEST)
        code, unchanged = view.pvalidate(gpa, size=size, validate=validate)
    except RmpViolation as violation:
        if violation.fault & FAULT_SIZEM:
            raise
        # Unvalidated already, or not the guest's in the RMP: on hardware a fault of the caller's making.
        if not validate and entry & _IGNORE_CF:
            return ResultCode.SUCCESS
        return ResultCode.PVALIDATE_FAIL_UNCHANGED if not validate else ResultCode.PVALIDATE_FAIL_INPUT
    if code != RmpResult.SUCCESS:
        return _CODES.get(code, ResultCode.INVALID_REQUEST)
    if unchanged and not entry & _IGNORE_CF:
        return ResultCode.PVALIDATE_FAIL_UNCHANGED
    if validate:
        if not unchanged:
            # The host chose what is behind this address: a page of VMPL 0's that it moved here must not leak.
            view.zero(gpa, length)
        code = view.rmpadjust(gpa, size=size, vmpl=GUEST_VMPL, permissions=Permission.ALL)
        if code != RmpResult.SUCCESS:
            return _CODES.get(code, ResultCode.INVALID_REQUEST)
    return ResultCode.SUCCESS
