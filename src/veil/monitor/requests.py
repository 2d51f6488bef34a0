# SPDX-License-Identifier: GPL-2.0-or-later
"""An SVSM call and its result (58019, sections 5 and 6)."""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["Request", "Result", "ResultCode"]


class ResultCode(enum.IntEnum):
    """RAX after a call (58019, table 5, and the protocol-specific codes of the core protocol)."""

    SUCCESS = 0
    INCOMPLETE = 0x80000000
    UNSUPPORTED_PROTOCOL = 0x80000001
    UNSUPPORTED_CALL = 0x80000002
    INVALID_ADDRESS = 0x80000003
    INVALID_FORMAT = 0x80000004
    INVALID_PARAMETER = 0x80000005
    INVALID_REQUEST = 0x80000006
    BUSY = 0x80000007
    PVALIDATE_FAIL_INPUT = 0x80001001
    PVALIDATE_FAIL_SIZE_MISMATCH = 0x80001006
    PVALIDATE_FAIL_UNCHANGED = 0x80001010


class Request(NamedTuple):
    """A call, its registers copied once from the caller's VMSA."""

    vcpu: int
    """APIC ID of the caller."""
    protocol: int
    call: int
    rcx: int
    rdx: int
    r8: int
    r9: int


class Result(NamedTuple):
    """What goes back; None leaves a register as the caller had it."""

    code: int
    rcx: int | None = None
    rdx: int | None = None
    r8: int | None = None
    r9: int | None = None
