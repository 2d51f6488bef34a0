# SPDX-License-Identifier: GPL-2.0-or-later
"""The core protocol, number 0 (58019, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from veil.formats.svsm_calls import CoreCall, SvsmProtocol
from veil.monitor.protocols import core_memory, core_vcpu
from veil.monitor.svsm_call import ResultCode, SvsmRequest, SvsmResult

if TYPE_CHECKING:
    from veil.monitor.state import MonitorState
    from veil.snp.view import View

__all__ = ["CoreProtocol"]

_Handler = Callable[["MonitorState", "View", SvsmRequest], SvsmResult]


class CoreProtocol:
    """Dispatches. DEPOSIT_MEM and WITHDRAW_MEM are optional: this monitor never asks the kernel for memory."""

    number = int(SvsmProtocol.CORE)
    versions = (1, 1)

    def __init__(self, state: MonitorState, view: View) -> None:
        self._state = state
        self._view = view

    def call(self, request: SvsmRequest) -> SvsmResult:
        """Answer a call."""
        handler = _HANDLERS.get(request.call)
        return handler(self._state, self._view, request) if handler else _UNSUPPORTED_CALL


def _query_protocol(state: MonitorState, view: View, request: SvsmRequest) -> SvsmResult:
    """RCX: protocol 63:32, version 31:0; RCX out: highest 63:32 and lowest 31:0 version, or 0."""
    protocol = state.protocols.get(request.rcx >> 32)
    if protocol is None:
        return SvsmResult(ResultCode.SUCCESS, rcx=0)
    lowest, highest = protocol.versions
    offered = lowest <= request.rcx & 0xFFFFFFFF <= highest
    return SvsmResult(ResultCode.SUCCESS, rcx=highest << 32 | lowest if offered else 0)


def _configure_vtom(state: MonitorState, view: View, request: SvsmRequest) -> SvsmResult:
    """Virtual TOM is not offered: a query says so, a request to use it is invalid."""
    if request.rcx & 1:
        return SvsmResult(ResultCode.SUCCESS, rcx=0)
    return SvsmResult(ResultCode.INVALID_REQUEST)


_UNSUPPORTED_CALL = SvsmResult(ResultCode.UNSUPPORTED_CALL)
_HANDLERS: dict[int, _Handler] = {
    CoreCall.REMAP_CA: core_memory.remap_ca,
    CoreCall.PVALIDATE: core_memory.pvalidate,
    CoreCall.CREATE_VCPU: core_vcpu.create_vcpu,
    CoreCall.DELETE_VCPU: core_vcpu.delete_vcpu,
    CoreCall.QUERY_PROTOCOL: _query_protocol,
    CoreCall.CONFIGURE_VTOM: _configure_vtom,
}
