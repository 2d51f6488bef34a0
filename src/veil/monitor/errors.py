# SPDX-License-Identifier: GPL-2.0-or-later
"""What the monitor gives up on. The kernel's calls never raise it: they get result codes (`svsm_call.CallError`)."""

from __future__ import annotations

import enum

__all__ = ["MonitorError", "Reason"]


class Reason(enum.IntEnum):
    """Termination reasons of VeilMon, sent to the host in reason set `ghcb.REASON_SET` (docs/monitor.md)."""

    GENERAL = 0
    BAD_PARAMETERS = 1
    MEMORY_ALREADY_VALIDATED = 2
    MEMORY_NOT_VALIDATED = 3
    BAD_KERNEL_VMSA = 4
    HOST_REFUSED = 5
    HOST_LACKS_FEATURES = 6
    CPUID_CHANGED = 7
    BAD_SERVICES = 8


class MonitorError(Exception):
    """The monitor stops the machine for this reason."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
