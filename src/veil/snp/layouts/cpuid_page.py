# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPUID page of a launch (56860, table "CPUID Page Format"): what CPUID is to answer, for a guest that asks it."""

from __future__ import annotations

import ctypes

from veil.formats.offsets import check_offsets
from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["CPUID_COUNT_MAX", "CpuidFunction", "CpuidPage"]

#: entries that a page has room for
CPUID_COUNT_MAX = 64

_U8, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64


class CpuidFunction(ctypes.LittleEndianStructure):
    """0x30 bytes: the answer to one leaf and subleaf, with XCR0 and IA32_XSS as given."""

    _pack_ = 1
    _fields_ = [
        ("eax_in", _U32),
        ("ecx_in", _U32),
        ("xcr0_in", _U64),
        ("xss_in", _U64),
        ("eax", _U32),
        ("ebx", _U32),
        ("ecx", _U32),
        ("edx", _U32),
        ("reserved_028", _U64),
    ]

    eax_in: int
    ecx_in: int
    xcr0_in: int
    xss_in: int
    eax: int
    ebx: int
    ecx: int
    edx: int


class CpuidPage(ctypes.LittleEndianStructure):
    """One page: `count` entries."""

    _pack_ = 1
    _fields_ = [
        ("count", _U32),
        ("reserved_004", _U32),
        ("reserved_008", _U64),
        ("functions", CpuidFunction * CPUID_COUNT_MAX),
        ("reserved_c10", _U8 * (PAGE_SIZE - 0xC10)),
    ]

    count: int
    functions: ctypes.Array[CpuidFunction]


check_offsets(CpuidFunction, 0x30, {"ecx_in": 0x04, "xcr0_in": 0x08, "xss_in": 0x10, "eax": 0x18, "edx": 0x24})
check_offsets(CpuidPage, PAGE_SIZE, {"functions": 0x10, "reserved_c10": 0xC10})
