# SPDX-License-Identifier: GPL-2.0-or-later
"""The core protocol, number 0 (58019, section 6)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from veil.monitor.protocols import core_memory, core_vcpu
from veil.monitor.requests import Request, Result, ResultCode

if TYPE_CHECKING:
    from veil.monitor.veilmon import VeilMon
    from veil.snp.view import View

__all__ = ["CoreCall", "CoreProtocol"]


class CoreCall(enum.IntEnum):
    """Call numbers."""

    REMAP_CA = 0
    PVALIDATE = 1
    CREATE_VCPU = 2
    DELETE_VCPU = 3
    DEPOSIT_MEM = 4
    WITHDRAW_MEM = 5
    QUERY_PROTOCOL = 6
    CONFIGURE_VTOM = 7


class CoreProtocol:
    """Dispatches; DEPOSIT_MEM and WITHDRAW_MEM are optional, the monitor needs no memory of the guest's."""

    number = 0
    versions = (1, 1)

    def __init__(self, monitor: VeilMon, view: View) -> None:
        self._monitor = monitor
        self._view = view
        self._handlers = {
            CoreCall.REMAP_CA: core_memory.remap_ca,
            CoreCall.PVALIDATE: core_memory.pvalidate,
            CoreCall.CREATE_VCPU: core_vcpu.create_vcpu,
            CoreCall.DELETE_VCPU: core_vcpu.delete_vcpu,
            CoreCall.QUERY_PROTOCOL: _query_protocol,
            CoreCall.CONFIGURE_VTOM: _configure_vtom,
        }

    def call(self, request: Request) -> Result:
        """Answer a call."""
        handler = self._handlers.get(request.call)  # type: ignore[call-overload]
        if handler is None:
            return Result(ResultCode.UNSUPPORTED_CALL)
        result: Result = handler(self._monitor, self._view, request)
        return result


def _query_protocol(monitor: VeilMon, view: View, request: Request) -> Result:
    """RCX: protocol 63:32, version 31:0; RCX out: highest 63:32 and lowest 31:0 version, or 0."""
    versions = monitor.protocol_versions(request.rcx >> 32)
    wanted = request.rcx & 0xFFFFFFFF
    if versions is None or not versions[0] <= wanted <= versions[1]:
        return Result(ResultCode.SUCCESS, rcx=0)
    return Result(ResultCode.SUCCESS, rcx=versions[1] << 32 | versions[0])


def _configure_vtom(monitor: VeilMon, view: View, request: Request) -> Result:
    """Virtual TOM is not offered: a query says so, a request to use it is invalid."""
    if request.rcx & 1:
        return Result(ResultCode.SUCCESS, rcx=0)
    return Result(ResultCode.INVALID_REQUEST)
