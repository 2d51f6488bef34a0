# SPDX-License-Identifier: GPL-2.0-or-later
"""An SVSM call and its result (58019, sections 5 and 6)."""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import NamedTuple, Protocol

__all__ = ["CallError", "CallHandler", "ResultCode", "SvsmRequest", "SvsmResult"]


class ResultCode(enum.IntEnum):
    """RAX after a call (58019, table 5). From 0x80001000 on a code belongs to the protocol that was called."""

    SUCCESS = 0
    INCOMPLETE = 0x80000000
    UNSUPPORTED_PROTOCOL = 0x80000001
    UNSUPPORTED_CALL = 0x80000002
    INVALID_ADDRESS = 0x80000003
    INVALID_FORMAT = 0x80000004
    INVALID_PARAMETER = 0x80000005
    INVALID_REQUEST = 0x80000006
    BUSY = 0x80000007
    # Core protocol: the result codes of PVALIDATE and RMPADJUST, and COCONUT-SVSM's for CF=1.
    FAIL_INPUT = 0x80001001
    FAIL_PERMISSION = 0x80001002
    FAIL_INUSE = 0x80001003
    FAIL_SIZE_MISMATCH = 0x80001006
    FAIL_UNCHANGED = 0x80001010


class SvsmRequest(NamedTuple):
    """A call, its registers copied once from the caller's VMSA."""

    vcpu: int
    """APIC ID of the caller."""
    protocol: int
    call: int
    rcx: int
    rdx: int
    r8: int
    r9: int


class SvsmResult(NamedTuple):
    """What goes back; None leaves a register as the caller had it."""

    code: int
    rcx: int | None = None
    rdx: int | None = None
    r8: int | None = None
    r9: int | None = None


class CallError(Exception):
    """A call ends with this result code and leaves the caller's other registers alone."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SVSM result {code:#x}")
        self.code = code


class CallHandler(Protocol):
    """What answers the calls of one protocol."""

    @property
    def versions(self) -> tuple[int, int]:
        """Lowest and highest version of the protocol."""

    def call(self, request: SvsmRequest) -> SvsmResult | Generator[None, None, SvsmResult]:
        """Answer a call, or raise CallError.

        A generator is an answer that needs the host: each `yield` is a VMGEXIT of the caller's VCPU.

        An RmpViolation becomes INVALID_ADDRESS; but one that the host can resolve (a 2 MiB RMP entry to split) makes
        the monitor wait and call again with the same request: a handler must be idempotent up to where it raised.
        """
