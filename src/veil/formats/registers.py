# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits of the processor's registers (24593, 3.1), and what some hold after a reset or FNINIT (24593, 14.1.3)."""

from __future__ import annotations

import enum

__all__ = [
    "CPUID_EDX_APIC",
    "INIT_FCW",
    "RESET_DR6",
    "RESET_DR7",
    "RESET_MXCSR",
    "RESET_PAT",
    "RESET_XCR0",
    "X87_EMPTY",
    "Cr0",
    "Cr4",
    "Efer",
    "Rflags",
]


class Cr0(enum.IntFlag):
    """Bits of CR0, as far as anything here decides by them or sets them."""

    PE = 1 << 0
    MP = 1 << 1
    ET = 1 << 4
    """Always 1."""
    NE = 1 << 5
    WP = 1 << 16
    PG = 1 << 31


class Cr4(enum.IntFlag):
    """Bits of CR4, as far as anything here decides by them or sets them."""

    PAE = 1 << 5
    MCE = 1 << 6
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    FSGSBASE = 1 << 16
    OSXSAVE = 1 << 18
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23


class Efer(enum.IntFlag):
    """Bits of EFER."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11
    SVME = 1 << 12
    """VMRUN refuses a VMSA without it."""


class Rflags(enum.IntFlag):
    """Bits of RFLAGS."""

    CF = 1 << 0
    ONE = 1 << 1
    """Always 1."""
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


#: of CPUID 1 and 0x80000001: there is an APIC, and it is on
CPUID_EDX_APIC = 1 << 9

RESET_DR6, RESET_DR7 = 0xFFFF0FF0, 0x400
RESET_PAT = 0x0007_0406_0007_0406
#: x87 alone
RESET_XCR0 = 1
RESET_MXCSR = 0x1F80
#: after FNINIT: all exceptions masked, extended precision
INIT_FCW = 0x37F
#: the tag word of an x87 stack with nothing on it
X87_EMPTY = 0xFFFF
