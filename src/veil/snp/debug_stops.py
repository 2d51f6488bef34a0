# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a debugger has the machine stop, and why it did (engine/api.h). The guest sees nothing of it."""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["MAX_WATCHPOINTS", "DebugStop", "StopReason", "WatchKind", "Watchpoint"]

#: `VEIL_MAX_WATCHPOINTS`
MAX_WATCHPOINTS = 32


class StopReason(enum.IntEnum):
    """`VEIL_STOP_...`"""

    NONE = 0
    STEP = 1
    """one instruction, or one event, was executed (`Machine.set_single_step`)"""
    BREAKPOINT = 2
    """in front of the instruction"""
    WATCHPOINT = 3
    """in front of the instruction that makes the access"""


class WatchKind(enum.IntFlag):
    """`VEIL_WATCH_...`"""

    READ = 1
    WRITE = 2


class Watchpoint(NamedTuple):
    """A range of virtual addresses, of whichever context."""

    address: int
    length: int
    kind: WatchKind


class DebugStop(NamedTuple):
    """Why a VMRUN ended."""

    reason: StopReason
    address: int
    """of the watchpoint"""
