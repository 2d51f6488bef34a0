# SPDX-License-Identifier: GPL-2.0-or-later
"""The times that the kernel claims in its records, against the machine's own.

A record's time is the kernel's clock (CLOCK_REALTIME, coarse) when its system call began, or when it was made if it
belongs to none (Linux 6.12: kernel/auditsc.c, `__audit_syscall_entry`; kernel/audit.c, `audit_get_stamp`). So what a
record claims is at most the kernel's time when it was handed over, and may be far less, for system calls may take long.
The machine's time stamp counter is what neither kernel nor host can set. Claimed less counted time has a highest value,
which may drift as slowly as clocks do (NTP slews by at most 500 parts in a million); a step of it is a clock that was
set, or a kernel that makes up times.

A clock that was set forward shows in any record. One that was set back shows

- in one record that was stamped when it was made: the driver's intents, and messages of programs (kernel/audit.c,
  `audit_log_user_recv_msg` names no context). They are handed over at once, so that they are old only if the machine
  stood still in between, or the log was full: then there was a gap between entries. That holds for some time, for those
  who waited come one by one;
- in one record of any other kind that claims a time long before the machine's launch;
- in many records that agree about it, of whatever kind.
"""

from __future__ import annotations

from collections.abc import Callable

from veil.formats.log import LogEntry
from veil.remote.log.findings import FindingKind

__all__ = ["ClockCheck"]

_MS = 1_000_000
_NS = 1_000_000_000
#: The clock is set to the second at boot, and to less than that later.
_TOLERANCE = 2 * _NS
_DRIFT = 2000  # one part in 2000
#: A clock set back is reported only when `_MIN_AGREEING` records within `_WINDOW` agree on the new offset, to `_AGREE`.
_WINDOW = 10 * _NS
_MIN_AGREEING = 16
_AGREE = _NS // 2
#: For this long after a restore or a reported clock change, a step is expected.
_EXCUSED = 60 * _NS
#: No reason excuses a step back by more: a restored machine's clock goes forward, and time zones are of hours.
_MAX_BACK = 86_400 * _NS
#: Nor did a call begin so long before the launch: in another life, of which a snapshot was restored since.
_OLDEST_CALL = 366 * 86_400 * _NS
#: A record that was stamped when it was made comes within that time, of the machine's when it runs.
_AT_ONCE = 10 * _NS
#: Without an entry for so long, records may have waited; and for so long after that.
_GAP, _AFTER_GAP = 2 * _NS, 60 * _NS


class ClockCheck:
    """Fed with one entry and one claimed time after the other. `report(kind, entry, words, distrust)`."""

    def __init__(self, report: Callable[[FindingKind, LogEntry, str, bool], None]) -> None:
        self._report = report
        self._base: int | None = None  # claimed less counted time
        self._before = 0  # the same before the last step
        self._lowest = 0  # of all
        self._base_ns = self._excused_ns = 0
        self._began: LogEntry | None = None
        self._highest = self._agreeing = self._count = 0
        self._last_ns = self._calm_ns = 0
        self._gap_ns: int | None = None  # the end of the last gap

    def excuse(self, entry: LogEntry) -> None:
        """The clock may step about now: the machine was restored, or the kernel says that it was set."""
        self._excused_ns = entry.time_ns + _EXCUSED

    def hear(self, entry: LogEntry) -> None:
        """An entry came, with or without times in it."""
        now = entry.time_ns
        if now - self._last_ns > _GAP:
            if self._gap_ns is None or self._last_ns - self._gap_ns > _AFTER_GAP:
                self._calm_ns = self._last_ns
            self._gap_ns = now
        self._last_ns = now

    def see(self, stamp_ms: int, entry: LogEntry, *, at_once: bool = False) -> None:
        """A record claims this time (milliseconds since 1970). `at_once`: it was stamped when it was made."""
        now = entry.time_ns
        claimed = stamp_ms * _MS
        offset = claimed - now
        if self._base is None:
            # The guest's clock is set when its agent comes up.
            self._base = self._before = self._lowest = offset
            self._base_ns = now
            self.excuse(entry)
        allowed = _TOLERANCE + (now - self._base_ns) // _DRIFT
        if offset > self._base + allowed:
            # Unless it is a call that began before the clock was set back.
            if at_once or claimed > self._before + self._base_ns + _TOLERANCE:
                self._step(offset, entry)
        elif claimed < self._lowest - _OLDEST_CALL or (at_once and offset < self._oldest(now) - allowed):
            self._step(offset, entry)
        else:
            self._look_back(offset, self._base - allowed, entry)

    def _oldest(self, now: int) -> int:
        """What the least offset of a record is that was stamped when it was made."""
        assert self._base is not None
        waited = _AT_ONCE
        if self._gap_ns is not None and now - self._gap_ns <= _AFTER_GAP:
            waited += now - self._calm_ns
        base = self._base if now - self._base_ns > waited else min(self._base, self._before)
        return base - waited

    def _look_back(self, offset: int, lowest: int, entry: LogEntry) -> None:
        if self._began is None:
            self._began, self._highest, self._agreeing, self._count = entry, offset, 1, 0
        elif offset > self._highest + _AGREE:
            self._highest, self._agreeing = offset, 1
        elif offset > self._highest - _AGREE:
            self._agreeing += 1
            self._highest = max(self._highest, offset)
        self._count += 1
        if self._agreeing >= _MIN_AGREEING and entry.time_ns - self._began.time_ns >= _WINDOW:
            if self._highest < lowest:
                self._step(self._highest, self._began)
            self._began = None
        elif self._count >= 2 * _MIN_AGREEING:
            # They do not agree: calls that took long, or some from before it was set back.
            self._began = None

    def _step(self, offset: int, entry: LogEntry) -> None:
        assert self._base is not None
        step = offset - self._base
        seconds = abs(step) / _NS
        way = "forward" if step > 0 else "back"
        words = f"the kernel's clock went {way} by {seconds:.1f} s against the machine's"
        if entry.time_ns <= self._excused_ns and step >= -_MAX_BACK:
            self._report(FindingKind.CLOCK, entry, f"{words}, about when it was restored or set", False)
        else:
            self._report(FindingKind.CLOCK, entry, f"{words}: it was set, or the times are made up", True)
        self._before, self._base = self._base, offset
        self._lowest = min(self._lowest, offset)
        self._base_ns, self._began = entry.time_ns, None
