# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in turn on guests that differ in audit and driver alone: what audit costs, and what VeilS-LOG adds to it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.audit.guests import BARE, IDLE, LogGuest, Setup
from bench.audit.programs import Program

__all__ = ["FULL", "SHORT", "Effort", "Outcome", "Spread", "measure_programs"]


@dataclass(frozen=True)
class Effort:
    """How much is run."""

    rounds: int
    """Each with guests of its own, eight for all rules."""
    warm: int
    """Runs of a program on each guest that do not count."""
    turns: int
    """Runs of which the best counts."""


FULL, SHORT = Effort(rounds=12, warm=2, turns=4), Effort(rounds=1, warm=1, turns=1)


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float


@dataclass
class Outcome:
    """One program: the seconds of each round, by setup; a run's records and domain switches, by rules."""

    program: Program
    seconds: dict[Setup, list[float]] = field(default_factory=dict)
    records: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)

    def median(self, setup: Setup) -> float:
        """Seconds."""
        return statistics.median(self.seconds[setup])

    def ratio(self, setup: Setup, other: Setup) -> Spread:
        """How many times longer, round by round: what slows the computer for a while slows both."""
        ratios = [one / two for one, two in zip(self.seconds[setup], self.seconds[other], strict=True)]
        if len(ratios) == 1:
            return Spread(ratios[0], ratios[0], ratios[0])
        return Spread(*statistics.quantiles(ratios, n=4, method="inclusive"))

    def idle(self) -> Spread:
        """A guest with the driver and no audit, against one without the driver."""
        return self.ratio(IDLE, BARE)

    def audit(self, rules: str) -> Spread:
        """The kernel's own audit, against none."""
        return self.ratio(Setup(driver=False, rules=rules), BARE)

    def log(self, rules: str) -> Spread:
        """Audit with VeilS-LOG, against audit alone."""
        return self.ratio(Setup(driver=True, rules=rules), Setup(driver=False, rules=rules))

    def records_per_second(self, rules: str) -> float:
        """While VeilS-LOG keeps them."""
        return self.records[rules] / self.median(Setup(driver=True, rules=rules))


def measure_programs(
    snapshot: Path, programs: Sequence[Program], rules: Sequence[str], effort: Effort, say: Callable[[str], None]
) -> list[Outcome]:
    """Each program on every guest, in rounds. Each round has guests of its own, since two equal ones differ for good by
    some percent (where their memory and their translations lie), and a program's turns have an order of their own."""
    setups = [BARE, IDLE, *(Setup(driver, name) for name in rules for driver in (False, True))]
    outcomes = [Outcome(program) for program in programs]
    shuffle = random.Random(1).shuffle
    for number in range(effort.rounds):
        say(f"round {number + 1} of {effort.rounds}: {len(setups)} guests")
        shuffle(setups)
        with ExitStack() as stack:
            guests = [stack.enter_context(closing(LogGuest(snapshot, setup))) for setup in setups]
            for outcome in outcomes:
                _measure(outcome, guests, effort, shuffle)
    return outcomes


def _measure(
    outcome: Outcome, guests: list[LogGuest], effort: Effort, shuffle: Callable[[list[LogGuest]], None]
) -> None:
    """The best of a few turns, after others that warm caches, of translated code above all."""
    command = outcome.program.command
    for _ in range(effort.warm):
        for guest in guests:
            guest.run(command)
    logging = [guest for guest in guests if guest.setup.driver and guest.setup.rules]
    before = {}
    for guest in logging:
        guest.collect()
        before[guest.setup] = guest.totals()
    seconds: dict[Setup, list[float]] = {guest.setup: [] for guest in guests}
    for _ in range(effort.turns):
        shuffle(guests)
        for guest in guests:
            seconds[guest.setup].append(guest.run(command))
    for setup, times in seconds.items():
        outcome.seconds.setdefault(setup, []).append(min(times))
    for guest in logging:
        setup, totals = guest.setup, guest.totals()
        assert setup.rules is not None
        records = totals.records - before[setup].records
        if (kept := guest.collect()) < records:
            raise RuntimeError(f"{records} audit records were made, {kept} were kept")
        outcome.records[setup.rules] = records / effort.turns
        outcome.calls[setup.rules] = (totals.calls - before[setup].calls) / effort.turns
