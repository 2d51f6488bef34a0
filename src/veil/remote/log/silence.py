# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that says nothing: was it silent, or not run?

Whatever it hands over is a sign of life. Two witnesses tell of the time between two of them. An honest host runs the
services each second even if nobody asks them; while they were run, the kernel could have called. And the kernel counts
timer interrupts in its heartbeats: what it counted, it ran. Either is enough for distrust. A machine that was not run
has neither: that is a note.

Both can be deceived, by a compromised kernel and a hostile host together: the kernel counts too little, the host does
not run the services. They gain nothing that heartbeats, which such a kernel can make as well, would not give them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from veil.formats.log import SILENCE_TOLD_NS, TICK_NS, Head, Heartbeat, LogEntry, Silence
from veil.remote.log.findings import FindingKind

__all__ = ["SilenceCheck"]

_NS = 1_000_000_000

Report = Callable[[FindingKind, LogEntry, int | None, str, bool], None]


class _Life(NamedTuple):
    """A sign of life, and the last time that the kernel had claimed by then."""

    entry: LogEntry
    claimed_ms: int | None


class _Gap(NamedTuple):
    """A silence that ended, of which the kernel has not given its account yet."""

    begin: _Life
    end: LogEntry
    told: Silence | None


class _Account(NamedTuple):
    time_ns: int
    ticks: int | None


class SilenceCheck:
    """Fed with the kernel's entries (`sign`, `beat`) and the service's words. `report(kind, entry, claimed_ms, words,
    distrust)` names the last entry before the silence."""

    def __init__(self, report: Report, silence_ns: int) -> None:
        self._report = report
        self._limit = silence_ns
        self._life: _Life | None = None
        self._before: _Life | None = None  # the sign of life before that
        self._told: Silence | None = None  # by the service, since the last sign of life
        self._gap: _Gap | None = None
        self._account: _Account | None = None
        self._beat_ns = 0
        self._missed = False  # said that heartbeats stay away while there are other signs of life
        self.beats = False
        """there was a heartbeat: a kernel may be configured to give none, and then nothing is silence"""
        self._said = 0  # of the silence that lasts: 1 as a note, 2 as a reason for distrust

    def restart(self, entry: LogEntry, claimed_ms: int | None) -> None:
        """The machine was launched, or restored: a time begins of which nothing before is part."""
        self._settle(None)
        self._life, self._told, self._said, self._beat_ns = _Life(entry, claimed_ms), None, 0, entry.time_ns

    def tell(self, silence: Silence) -> None:
        """The service's word, which is trusted as the log is."""
        self._told = silence

    def sign(self, entry: LogEntry, claimed_ms: int | None) -> None:
        """The kernel handed something over; `claimed_ms`: the time that it claims now."""
        life = self._life
        if life is not None and self.beats and entry.time_ns - life.entry.time_ns > self._limit:
            self._settle(None)
            self._gap = _Gap(life, entry, self._told)
            if self._awake(self._told):
                self._settle(None)
        elif self.beats and not self._missed and entry.time_ns - self._beat_ns > self._limit:
            self._missed = True
            words = f"no heartbeat for {_seconds(entry.time_ns - self._beat_ns)}, and records came all the same"
            self._report(FindingKind.NO_HEARTBEATS, entry, claimed_ms, words, False)
        self._before, self._life, self._told = life, _Life(entry, claimed_ms), None
        if self._gap is None:
            self._said = 0

    def beat(self, entry: LogEntry, heartbeat: Heartbeat | None) -> None:
        """After `sign`, for a heartbeat; None: it gives no account."""
        self.beats, self._missed, self._beat_ns = True, False, entry.time_ns
        account = _Account(entry.time_ns, heartbeat.ticks if heartbeat is not None else None)
        if self._gap is not None:
            self._settle(account)
        if account.ticks is None:
            return
        old = self._account
        if old is not None and old.ticks is not None and account.ticks < old.ticks and self._before is not None:
            words = (
                f"the kernel's count of timer interrupts went back from {old.ticks} to {account.ticks} with entry "
                f"{entry.sequence}: its driver was removed and loaded again, and was not there meanwhile"
            )
            self._report(FindingKind.SILENCE, *self._before, words, True)
        self._account = account

    def up_to(self, now_ns: int, head: Head | None = None) -> None:
        """It is `now_ns` by the machine, and there are no more entries."""
        life = self._life
        if life is None or not self.beats:
            return
        quiet = now_ns - max(life.entry.time_ns, head.last_ns if head is not None else 0)
        if quiet <= self._limit:
            return
        # Heartbeats without an account are an older driver's, and nobody can tell.
        silent = self._awake(self._told) or self._account is None
        if self._said >= 1 + silent:
            return
        self._said = 1 + silent
        words = f"no sign of life for {_seconds(quiet)} up to now: {_SILENT if silent else _NOT_RUN}{_ran(self._told)}"
        self._report(FindingKind.SILENCE, *life, words, silent)

    def finish(self) -> None:
        """There will be no further account."""
        self._settle(None)

    def _awake(self, told: Silence | None) -> bool:
        return told is not None and told.awake_ns >= self._limit

    def _settle(self, account: _Account | None) -> None:
        """Judge the silence that ended. `account`: of the first heartbeat after it."""
        gap, self._gap = self._gap, None
        if gap is None:
            return
        quiet = gap.end.time_ns - gap.begin.entry.time_ns
        counted = self._counted(account, quiet)
        silent, words = True, _SILENT
        if self._awake(gap.told):
            words += _ran(gap.told)
        elif counted is not None and counted >= self._limit:
            words += f", and by its own count of timer interrupts it ran for {_seconds(counted)} of that"
        elif self._account is None or (account is not None and counted is None) or quiet < SILENCE_TOLD_NS:
            words += ", the host did not run it, or the log was full"
        else:
            silent = False
            words = _NO_ROOM if gap.told is None else f"{_NOT_RUN}{_ran(gap.told)}"
        said, self._said = self._said, 0
        if said < 1 + silent:
            words = f"no sign of life for {_seconds(quiet)} until entry {gap.end.sequence}: {words}"
            self._report(FindingKind.SILENCE, *gap.begin, words, silent)

    def _counted(self, account: _Account | None, quiet: int) -> int | None:
        """How long the kernel ran in a silence, by its own count; None: it does not say."""
        old = self._account
        if account is None or old is None or account.ticks is None or old.ticks is None:
            return None
        # Between the two accounts there is also time in which it gave other signs of life, and ran.
        besides = account.time_ns - old.time_ns - quiet
        return (account.ticks - old.ticks) * TICK_NS - max(0, besides)


_SILENT = "the kernel was silent"
_NOT_RUN = "the machine was not run, or hardly"
_NO_ROOM = "the log had no room, and the kernel's calls waited"


def _seconds(time_ns: int) -> str:
    return f"{time_ns / _NS:.1f} s"


def _ran(told: Silence | None) -> str:
    return "" if told is None else f"; the services ran for {_seconds(told.awake_ns)} of that"
