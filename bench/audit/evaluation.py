# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in turn on guests that differ in audit and driver alone: what audit costs, and what VeilS-LOG adds to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.audit.guests import LogGuest, Way
from bench.audit.programs import Program

__all__ = ["Outcome", "measure_programs"]


@dataclass(frozen=True)
class Outcome:
    """One program: the seconds of each turn, by way."""

    program: Program
    seconds: dict[Way, list[float]]
    records: float
    """of one run"""
    calls: float
    """domain switches of one run"""

    def median(self, way: Way) -> float:
        """Seconds."""
        return statistics.median(self.seconds[way])

    def ratios(self, way: Way, other: Way) -> list[float]:
        """How many times longer, turn by turn: what slows the computer for a while slows both."""
        return [one / two for one, two in zip(self.seconds[way], self.seconds[other], strict=True)]

    def ratio(self, way: Way, other: Way) -> float:
        """The median of the turns' ratios."""
        return statistics.median(self.ratios(way, other))

    @property
    def records_per_second(self) -> float:
        """While VeilS-LOG keeps them."""
        return self.records / self.median(Way.LOG)

    @property
    def microseconds_per_call(self) -> float:
        """What VeilS-LOG adds, for each domain switch."""
        return (self.ratio(Way.LOG, Way.AUDIT) - 1) * self.median(Way.AUDIT) / self.calls * 1e6


def measure_programs(
    guests: Sequence[LogGuest], programs: Sequence[Program], *, turns: int, scale: int, say: Callable[[str], None]
) -> list[Outcome]:
    """Each program on every guest, `turns` times after a first one that warms caches; each turn begins with another
    guest."""
    log = next(guest for guest in guests if guest.way == Way.LOG)
    outcomes = []
    for program in programs:
        say(program.name)
        command = program.command(scale)
        for guest in guests:
            guest.run(command)
            guest.run(command)
        log.collect()
        seconds: dict[Way, list[float]] = {guest.way: [] for guest in guests}
        before = log.totals()
        for turn in range(turns):
            first = turn % len(guests)
            for guest in (*guests[first:], *guests[:first]):
                seconds[guest.way].append(guest.run(command))
        after = log.totals()
        records = after.records - before.records
        if (kept := log.collect()) < records:
            raise RuntimeError(f"{records} audit records were made, {kept} were kept")
        outcomes.append(Outcome(program, seconds, records / turns, (after.calls - before.calls) / turns))
    return outcomes
