# SPDX-License-Identifier: GPL-2.0-or-later
"""Why guests terminate themselves: reason sets and reasons (56421, "Termination Request").

The specification defines set 0; sets from 1 on belong to guests. VeilMon's stand here because both sides of the border
know them: it sends them, and the host says in words what they mean.
"""

from __future__ import annotations

import enum

__all__ = ["GeneralReason", "MonitorReason", "ReasonSet"]


class ReasonSet(enum.IntEnum):
    """Whose reasons they are."""

    GENERAL = 0
    LINUX = 1
    """Linux (arch/x86/include/asm/sev-common.h)."""
    MONITOR = 5
    """VeilMon."""
    SVSM = 15
    """AMD's linux-svsm. COCONUT-SVSM always says set 0, code 0."""


class GeneralReason(enum.IntEnum):
    """Of `ReasonSet.GENERAL`."""

    GENERAL = 0
    PROTOCOL_RANGE = 1
    SNP_FEATURES = 2


class MonitorReason(enum.IntEnum):
    """Of `ReasonSet.MONITOR` (docs/monitor.md)."""

    GENERAL = 0
    BAD_PARAMETERS = 1
    MEMORY_ALREADY_VALIDATED = 2
    MEMORY_NOT_VALIDATED = 3
    BAD_KERNEL_VMSA = 4
    HOST_REFUSED = 5
    HOST_LACKS_FEATURES = 6
    CPUID_CHANGED = 7
    BAD_SERVICES = 8
