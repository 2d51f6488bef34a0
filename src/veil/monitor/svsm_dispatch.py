# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of the kernel: from its VMSA and calling area to the answer (58019, section 5, "Calling Convention")."""

from __future__ import annotations

import contextlib
import enum
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veil.formats.registers import Efer
from veil.monitor.svsm_call import CallError, ResultCode, SvsmRequest, SvsmResult
from veil.snp.errors import RmpViolation
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmsa
from veil.snp.rmp import FAULT_SIZEM

if TYPE_CHECKING:
    from veil.monitor.contexts import VcpuContexts
    from veil.monitor.state import MonitorState
    from veil.snp.view import View

__all__ = ["Served", "Unfinished", "answer", "finish"]

_VMGEXIT = int(ExitCode.VMGEXIT)
_SVME = int(Efer.SVME)

# The part of a VMSA that a call needs, from EFER to the exit code, is copied at once; offsets into the copy follow.
_EFER = Vmsa.efer.offset
_RAX = Vmsa.rax.offset
_RCX = Vmsa.rcx.offset
_RDX = Vmsa.rdx.offset
_R8 = Vmsa.r8.offset
_R9 = Vmsa.r9.offset
_PART = Vmsa.guest_exit_code.offset + 8 - _EFER
_EXIT_CODE_AT = Vmsa.guest_exit_code.offset - _EFER
_RAX_AT = _RAX - _EFER
_RCX_AT = _RCX - _EFER
_R8_AT = _R8 - _EFER
_ONE = struct.Struct("<Q").unpack_from
_TWO = struct.Struct("<2Q").unpack_from
assert _RDX == _RCX + 8
assert _R9 == _R8 + 8

_UNSUPPORTED_PROTOCOL = SvsmResult(ResultCode.UNSUPPORTED_PROTOCOL)
_INVALID_ADDRESS = SvsmResult(ResultCode.INVALID_ADDRESS)


class Served(enum.Enum):
    """What `answer` found."""

    NO_CALL = enum.auto()
    DONE = enum.auto()


_NO_CALL, _DONE = Served.NO_CALL, Served.DONE


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A call that needs the host before its caller goes on: `finish` it."""

    vmsa: int
    efer: int
    steps: Generator[None, None, SvsmResult]


def answer(state: MonitorState, view: View, vcpu: VcpuContexts) -> Served | Unfinished | RmpViolation:
    """Serve the call of this VCPU's kernel context, if it made one.

    Returns a refusal that the host must resolve (a 2 MiB RMP entry to split) before the call can go on: the call is
    pending again then, and serving it starts over.
    """
    vmsa, caa = vcpu.kernel.vmsa, vcpu.kernel.caa
    if vmsa is None or caa is None:
        return _NO_CALL
    try:
        part = view.read(vmsa + _EFER, _PART)
        # The host may come here by itself at any time: without a VMGEXIT, and without a call pending, there is none.
        if _ONE(part, _EXIT_CODE_AT)[0] != _VMGEXIT or not view.exchange_u8(caa, 0):
            return _NO_CALL
    except RmpViolation:
        # The kernel may have the host take its own VMSA or calling area away, which must not end VeilMon: the services'
        # memory would go with it. Who calls without them gets no answer.
        return _NO_CALL
    efer: int = _ONE(part, 0)[0]
    # The host must not run the caller while its registers are half written.
    view.write_u64(vmsa + _EFER, efer & ~_SVME)
    rax: int = _ONE(part, _RAX_AT)[0]
    protocol = rax >> 32
    handler = state.protocols.get(protocol)
    result = _UNSUPPORTED_PROTOCOL
    try:
        if handler is not None:
            request = SvsmRequest(vcpu.apic_id, protocol, rax & 0xFFFFFFFF, *_TWO(part, _RCX_AT), *_TWO(part, _R8_AT))
            answered = handler.call(request)
            if not isinstance(answered, SvsmResult):
                return Unfinished(vmsa, efer, answered)
            result = answered
    except CallError as error:
        result = SvsmResult(error.code)
    except RmpViolation as violation:
        if violation.fault & FAULT_SIZEM:
            view.exchange_u8(caa, 1)
            return violation
        # An address of the caller that is not its validated memory.
        result = _INVALID_ADDRESS
    if state.hearing is not None and state.hearing.waits:
        return Unfinished(vmsa, efer, _done(result))
    _write_back(view, vmsa, efer, result)
    return _DONE


def _done(result: SvsmResult) -> Generator[None, None, SvsmResult]:
    yield from ()
    return result


def finish(
    view: View, call: Unfinished, tell: Callable[[], Generator[None, None, None]]
) -> Generator[None, None, None]:
    """Take a call to its end. The caller cannot run meanwhile, nor can its VMSA be deleted: it runs on no VCPU.

    `tell`: what the services hear of the call, they hear before the caller goes on.
    """
    try:
        result = yield from call.steps
    except CallError as error:
        result = SvsmResult(error.code)
    except RmpViolation:
        result = _INVALID_ADDRESS
    yield from tell()
    # The kernel, on another VCPU, may have had the host take the caller's VMSA away: no VMRUN enters it any more.
    with contextlib.suppress(RmpViolation):
        _write_back(view, call.vmsa, call.efer, result)


def _write_back(view: View, vmsa: int, efer: int, result: SvsmResult) -> None:
    code, rcx, rdx, r8, r9 = result
    fields = [(_RAX, code), (_EFER, efer | _SVME)]
    if rcx is not None:
        fields.append((_RCX, rcx))
    if rdx is not None:
        fields.append((_RDX, rdx))
    if r8 is not None:
        fields.append((_R8, r8))
    if r9 is not None:
        fields.append((_R9, r9))
    view.write_fields(vmsa, fields)
