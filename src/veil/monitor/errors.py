# SPDX-License-Identifier: GPL-2.0-or-later
"""What the monitor gives up on. The kernel's calls never raise it: they get result codes (`svsm_call.CallError`)."""

from __future__ import annotations

from veil.formats.termination import MonitorReason

__all__ = ["MonitorError"]


class MonitorError(Exception):
    """The monitor stops the machine for this reason."""

    def __init__(self, reason: MonitorReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
