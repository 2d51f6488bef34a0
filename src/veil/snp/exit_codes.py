# SPDX-License-Identifier: GPL-2.0-or-later
"""SVM exit codes (APM volume 2, 24593, appendix C), as far as an SNP guest takes them."""

from __future__ import annotations

import enum

__all__ = ["ExitCode"]


class ExitCode(enum.IntEnum):
    """VMCB EXITCODE, and the error code of #VC."""

    READ_DR7 = 0x027
    WRITE_DR7 = 0x037
    INTR = 0x060
    NMI = 0x061
    VINTR = 0x064
    RDTSC = 0x06E
    RDPMC = 0x06F
    CPUID = 0x072
    INVD = 0x076
    PAUSE = 0x077
    HLT = 0x078
    IOIO = 0x07B
    MSR = 0x07C
    SHUTDOWN = 0x07F
    VMMCALL = 0x081
    RDTSCP = 0x087
    WBINVD = 0x089
    MONITOR = 0x08A
    MWAIT = 0x08B
    NPF = 0x400
    VMGEXIT = 0x403
    NOT_VALIDATED = 0x404
    BUSY = (1 << 64) - 2
    INVALID = (1 << 64) - 1
