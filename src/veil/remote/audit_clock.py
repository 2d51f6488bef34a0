# SPDX-License-Identifier: GPL-2.0-or-later
"""The times that the kernel claims in its records, against the machine's own.

A record's time is the kernel's clock (CLOCK_REALTIME, coarse) when its system call began, or when it was made if it
belongs to none (Linux 6.12: kernel/auditsc.c, `__audit_syscall_entry`; kernel/audit.c, `audit_get_stamp`). So what a
record claims is at most the kernel's time when it was handed over, and may be far less, for system calls may take long.
The machine's time stamp counter is what neither kernel nor host can set. Claimed less counted time has a highest value,
which may drift as slowly as clocks do (NTP slews by at most 500 parts in a million); a step of it is a clock that was
set, or a kernel that makes up times.
"""

from __future__ import annotations

from collections.abc import Callable

from veil.formats.log import LogEntry
from veil.remote.log_findings import FindingKind

__all__ = ["ClockCheck"]

_MS = 1_000_000
_NS = 1_000_000_000
#: The clock is set to the second at boot, and to less than that later.
_TOLERANCE = 2 * _NS
_DRIFT = 2000  # one part in so many
#: A clock that was set back shows in that many records, over that time, which agree about it.
_WINDOW = 10 * _NS
_ENOUGH = 16
_AGREE = _NS // 2
#: So long after a reason for it a step needs no other one.
_EXCUSED = 60 * _NS


class ClockCheck:
    """Fed with one claimed time after the other. `report(kind, entry, words, distrust)`."""

    def __init__(self, report: Callable[[FindingKind, LogEntry, str, bool], None]) -> None:
        self._report = report
        self._base: int | None = None  # claimed less counted time
        self._base_ns = self._excused_ns = 0
        self._began: LogEntry | None = None
        self._highest = self._agreeing = self._count = 0

    def excuse(self, entry: LogEntry) -> None:
        """The clock may step about now: the machine was restored, or the kernel says that it was set."""
        self._excused_ns = entry.time_ns + _EXCUSED

    def see(self, stamp_ms: int, entry: LogEntry) -> None:
        """A record claims this time (milliseconds since 1970)."""
        offset = stamp_ms * _MS - entry.time_ns
        if self._base is None:
            # The guest's clock is set when its agent comes up.
            self._base, self._base_ns = offset, entry.time_ns
            self.excuse(entry)
        allowed = _TOLERANCE + (entry.time_ns - self._base_ns) // _DRIFT
        if offset > self._base + allowed:
            self._step(offset, entry)
        else:
            self._look_back(offset, self._base - allowed, entry)

    def _look_back(self, offset: int, lowest: int, entry: LogEntry) -> None:
        if self._began is None:
            self._began, self._highest, self._agreeing, self._count = entry, offset, 1, 0
        elif offset > self._highest + _AGREE:
            self._highest, self._agreeing = offset, 1
        elif offset > self._highest - _AGREE:
            self._agreeing += 1
            self._highest = max(self._highest, offset)
        self._count += 1
        if self._agreeing >= _ENOUGH and entry.time_ns - self._began.time_ns >= _WINDOW:
            if self._highest < lowest:
                self._step(self._highest, self._began)
            self._began = None
        elif self._count >= 2 * _ENOUGH:
            # They do not agree: calls that took long, or some from before it was set back.
            self._began = None

    def _step(self, offset: int, entry: LogEntry) -> None:
        assert self._base is not None
        seconds = (offset - self._base) / _NS
        way = "forward" if seconds > 0 else "back"
        words = f"the kernel's clock went {way} by {abs(seconds):.1f} s against the machine's"
        if entry.time_ns <= self._excused_ns:
            self._report(FindingKind.CLOCK, entry, f"{words}, about when it was restored or set", False)
        else:
            self._report(FindingKind.CLOCK, entry, f"{words}: it was set, or the times are made up", True)
        self._base, self._base_ns, self._began = offset, entry.time_ns, None
