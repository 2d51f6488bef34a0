# SPDX-License-Identifier: GPL-2.0-or-later
"""Veil's own protocol, number 16: the kernel names the memory in which it will ask the protected services."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from veil.formats.domains import SERVICE_VMPL, Domain
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import BLOCK_ENTRY
from veil.formats.svsm_calls import ServicesCall, SvsmProtocol
from veil.formats.termination import MonitorReason
from veil.monitor.errors import MonitorError
from veil.monitor.page_book import Owner
from veil.monitor.svsm_call import ResultCode, SvsmRequest, SvsmResult
from veil.snp.errors import RmpViolation
from veil.snp.rmp import Permission, RmpResult

if TYPE_CHECKING:
    from veil.monitor.state import MonitorState
    from veil.snp.view import View

__all__ = ["MAX_BLOCK_PAGES", "ServicesProtocol"]

MAX_BLOCK_PAGES = 16


class ServicesProtocol:
    """Keeps request blocks validated memory that VMPL 1 can reach, as long as they are registered."""

    number = int(SvsmProtocol.SERVICES)
    versions = (1, 1)

    def __init__(self, state: MonitorState, view: View) -> None:
        self._state = state
        self._view = view

    def call(self, request: SvsmRequest) -> SvsmResult:
        """Answer a call."""
        if request.call != ServicesCall.REGISTER_BLOCK:
            return SvsmResult(ResultCode.UNSUPPORTED_CALL)
        gpa, pages, vcpu = request.rcx, request.rdx, request.vcpu
        if gpa % PAGE_SIZE or pages > MAX_BLOCK_PAGES:
            return SvsmResult(ResultCode.INVALID_PARAMETER)
        size = pages * PAGE_SIZE
        # Neither a VMSA nor a calling area nor another VCPU's block, and no memory of VeilMon's or the services': the
        # domain at VMPL 1 would read and write there in the kernel's name.
        if size and not self._state.book.is_kernel(gpa, size):
            return SvsmResult(ResultCode.INVALID_ADDRESS)
        for page in range(gpa, gpa + size, PAGE_SIZE):
            self._view.read_u8(page)  # raises if it is not validated
        if not self._grant(gpa, size):
            return SvsmResult(ResultCode.INVALID_REQUEST)
        self.release(vcpu)
        if size:
            self._state.book.move(gpa, size, Owner.BLOCK)
            self._state.blocks[vcpu] = (gpa, size)
        self._publish(vcpu, gpa if size else 0, size)
        return SvsmResult(ResultCode.SUCCESS)

    def _grant(self, gpa: int, size: int) -> bool:
        """VMPL 1 gets all of these pages or, if one is refused, none: what it has stands in the book.

        A refusal that the host must resolve is raised, and the call starts over.
        """
        end, at = gpa + size, gpa
        try:
            while at < end and self._adjust(at, Owner.BLOCK) == RmpResult.SUCCESS:
                at += PAGE_SIZE
        finally:
            if at < end:
                self._revoke(gpa, at - gpa)
        return at == end

    def _revoke(self, gpa: int, size: int) -> None:
        for page in range(gpa, gpa + size, PAGE_SIZE):
            # What the host took away meanwhile is refused, and has lost all permissions with it (RMPUPDATE).
            with suppress(RmpViolation):
                code = self._adjust(page, Owner.KERNEL)
                # Nobody but the silicon can make this fail, neither kernel nor host. If it does, the services' domain
                # has a page that the book says is the kernel's: better no guest than one whose book is wrong.
                if code != RmpResult.SUCCESS and self._view.allows(page, Permission.R, PAGE_SIZE):
                    raise MonitorError(MonitorReason.HOST_REFUSED, f"VMPL 1 keeps the page {page:#x}: {code.name}")

    def _adjust(self, page: int, owner: Owner) -> RmpResult:
        permissions = self._state.rows.permissions(owner, Domain.SER)
        return self._view.rmpadjust(page, vmpl=SERVICE_VMPL, permissions=permissions)

    def release(self, vcpu: int) -> None:
        """The VCPU's block becomes ordinary memory of the kernel."""
        found = self._state.blocks.pop(vcpu, None)
        if found is None:
            return
        gpa, size = found
        self._publish(vcpu, 0, 0)
        self._revoke(gpa, size)
        self._state.book.move(gpa, size, Owner.KERNEL)

    def _publish(self, vcpu: int, gpa: int, size: int) -> None:
        self._view.write(self._state.parameters.blocks_gpa + vcpu * BLOCK_ENTRY.size, BLOCK_ENTRY.pack(gpa, size))
