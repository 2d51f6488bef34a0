# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial numbers of the kernel's audit events: which are missing, which came twice.

What Linux 6.12 does (kernel/audit.c, kernel/auditsc.c). One counter of 32 bits, from 1 at boot, is raised by
`audit_serial`, which only `audit_get_stamp` reaches, which only `audit_log_start` calls, and that as its last step,
when nothing can fail any more: what the exclude list, the backlog limit or a lack of memory stops costs no number.
Every caller gives the buffer that it got to `audit_log_end`, where the driver takes it, before the rate limit is looked
at.
An event of a system call takes its number with its first record, and all its further records have the same number and
time. So the numbers that come are without gaps, except for those
- from before the driver was loaded: the log does not begin with number 1;
- in flight: taken on one VCPU, while another one hands over later numbers. A record may also wait for the backlog, up
  to a minute by default, with the records of its event that were made before;
- that found no room under the policy `drop`: the service counts those calls.
A number that is missing otherwise is a record that was made and did not arrive: the driver's hook was off (ftrace can
be switched off by root), the driver failed to hand it over, or the kernel did it on purpose. The absence of
gaps proves nothing about a compromised kernel, which can number as it likes. It only cannot take back the numbers it
used before.

The driver gives its intents numbers in the same way, of a counter of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from veil.formats.log import LogEntry
from veil.remote.log.findings import FindingKind

__all__ = ["SETTLE_NS", "Drops", "SerialCheck"]

#: For so long a number that others overtook may be in flight (audit_backlog_wait_time is 60 seconds by default).
SETTLE_NS = 70_000_000_000
#: One that comes so late is worth a word: its program may have gone on long before.
_LATE_NS = 5_000_000_000
_WRAP = 1 << 32
_HALF = 1 << 31
_RECENT = 1 << 14
_MAX_GAPS = 1 << 10

#: (kind, entry, words, distrust)
Report = Callable[[FindingKind, LogEntry, str, bool], None]


@dataclass(slots=True)
class _Gap:
    """Numbers `low` to `high` were not there when `entry` came. Numbers are without the wrap."""

    low: int
    high: int
    entry: LogEntry


@dataclass(slots=True)
class _Drop:
    time_ns: int
    left: int


class Drops:
    """Calls that found no room, as the service told. Each explains one number that is missing, and only once."""

    def __init__(self) -> None:
        self._told: deque[_Drop] = deque(maxlen=_MAX_GAPS)

    def add(self, entry: LogEntry, count: int) -> None:
        """The service says that it had no room for `count` calls."""
        self._told.append(_Drop(entry.time_ns, count))

    def explain(self, count: int, time_ns: int) -> bool:
        """Do dropped calls explain `count` numbers, which were missing at that time?"""
        # They are told with the first call that finds room again: that of the gap, or shortly before.
        near = [item for item in self._told if 0 <= time_ns - item.time_ns <= SETTLE_NS]
        if sum(item.left for item in near) < count:
            return False
        for item in near:
            used = min(item.left, count)
            item.left -= used
            count -= used
        return True


class SerialCheck:
    """Fed with one event's stamp after the other; bounded, whatever comes."""

    def __init__(self, report: Report, drops: Drops, word: str = "number") -> None:
        """`word` is what the numbers are called in reports."""
        self._report, self._drops, self._word = report, drops, word
        self._high: int | None = None
        self._first = 0
        self._first_ns = 0
        self._recent: dict[int, int] = {}  # number -> claimed time in ms * 2 + (a SYSCALL record came)
        self._gaps: list[_Gap] = []  # by numbers

    def see(self, serial: int, stamp_ms: int, is_call: bool, entry: LogEntry) -> None:
        """A record with this number. Call it once for records of the same number and kind in a row."""
        high = self._high
        if not serial and (high is None or high % _WRAP < _HALF):
            return  # the driver's own records have no number
        value = stamp_ms << 1 | is_call
        if high is None:
            self._high = self._first = serial + _WRAP
            self._first_ns = entry.time_ns
            self._remember(serial + _WRAP, value)
            return
        step = (serial - high) % _WRAP
        if step >= _HALF:
            step -= _WRAP
        number = high + step
        if step == 1:
            self._high = number
            self._remember(number, value)
        elif step > 1:
            self._gaps.append(_Gap(high + 1, number - 1, entry))
            self._bound()
            self._high = number
            self._remember(number, value)
        else:
            self._again(number, value, entry)

    def _again(self, number: int, value: int, entry: LogEntry) -> None:
        known = self._recent.get(number)
        if known is not None:
            if known >> 1 != value >> 1:
                words = f"{self._word} {number % _WRAP} was given to two events, which claim different times"
                self._report(FindingKind.REPEATED, entry, words, True)
            elif known & value & 1:
                words = f"{self._word} {number % _WRAP} ended two system calls"
                self._report(FindingKind.REPEATED, entry, words, True)
            else:
                self._recent[number] = known | value
            return
        if self._fill(number, entry):
            self._remember(number, value)
        elif 0 < self._first - number <= _MAX_GAPS and entry.time_ns - self._first_ns <= SETTLE_NS:
            # In flight when the log's first event came.
            self._remember(number, value)
        else:
            assert self._high is not None
            words = (
                f"{self._word} {number % _WRAP} came {self._high - number} numbers late, and is not one that was "
                "missing: used twice, or of a system call that took very long"
            )
            self._report(FindingKind.WENT_BACK, entry, words, True)

    def _remember(self, number: int, value: int) -> None:
        recent = self._recent
        recent[number] = value
        if len(recent) > _RECENT:
            del recent[next(iter(recent))]

    def _fill(self, number: int, entry: LogEntry) -> bool:
        """Was it missing? It no longer is."""
        gaps = self._gaps
        index = bisect_right(gaps, number, key=lambda gap: gap.low) - 1
        if index < 0 or number > gaps[index].high:
            return False
        gap = gaps[index]
        late = entry.time_ns - gap.entry.time_ns
        if late > _LATE_NS:
            words = f"{self._word} {number % _WRAP} came {late / 1e9:.1f} s after one behind it: its task had to wait"
            self._report(FindingKind.LATE, entry, words, False)
        if gap.low == gap.high:
            del gaps[index]
        elif number == gap.low:
            gap.low += 1
        elif number == gap.high:
            gap.high -= 1
        else:
            gaps.insert(index + 1, _Gap(number + 1, gap.high, gap.entry))
            gap.high = number - 1
            self._bound()
        return True

    def _bound(self) -> None:
        if len(self._gaps) > _MAX_GAPS:
            self._give_up(self._gaps.pop(0))

    def settle(self, now_ns: int) -> None:
        """What is missing for too long by now is reported."""
        while self._gaps and now_ns - self._gaps[0].entry.time_ns > SETTLE_NS:
            self._give_up(self._gaps.pop(0))

    def finish(self, now_ns: int) -> None:
        """The log ends: say what is missing, or may be on its way."""
        self.settle(now_ns)
        for gap in self._gaps:
            if self._account(gap):
                continue
            words = f"{self._numbers(gap)} not here (yet): in flight when the log was fetched, or missing"
            self._report(FindingKind.IN_FLIGHT, gap.entry, words, False)
        self._gaps.clear()

    def _give_up(self, gap: _Gap) -> None:
        if not self._account(gap):
            words = f"{self._numbers(gap)} missing: the kernel counted what it never handed over"
            self._report(FindingKind.MISSING, gap.entry, words, True)

    def _account(self, gap: _Gap) -> bool:
        return self._drops.explain(gap.high - gap.low + 1, gap.entry.time_ns)

    def _numbers(self, gap: _Gap) -> str:
        low, high = gap.low % _WRAP, gap.high % _WRAP
        if low == high:
            return f"{self._word} {low} is"
        return f"{gap.high - gap.low + 1} {self._word}s, {low} to {high}, are"
