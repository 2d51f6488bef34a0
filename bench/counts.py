# SPDX-License-Identifier: GPL-2.0-or-later
"""The same workloads by what the engine and the host count: a busy computer makes these no larger.

Only what time itself does is more on a slow computer: timer interrupts and what follows from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.guests import ProcessGuest
from bench.workloads import BOOT, Workload, prepare

__all__ = ["Counts", "counts_text", "measure_counts"]

#: What two guests counted in one workload: by guest, by name.
Counts = dict[str, dict[str, int]]

_GUESTS = ("veil", "no monitor")
#: Totals that say how things are, not how often something happened.
_STATES = ("RMP entries of 2 MiB", "RMP entries of 4 KiB")


def measure_counts(
    directory: Path, say: Callable[[str], None], *, workloads: Sequence[Workload], turns: int
) -> dict[str, list[Counts]]:
    """By row: one value for each turn. Boots one guest of each kind; the engine is the one that counts instructions."""
    result: dict[str, list[Counts]] = {BOOT: [{}], **{workload.name: [] for workload in workloads}}
    with contextlib.ExitStack() as stack:
        guests = []
        for name in _GUESTS:
            say(f"counts: boot of {name!r}")
            guest = ProcessGuest(name, count_instructions=True)
            stack.callback(guest.close)
            guests.append(guest)
            result[BOOT][0][name] = guest.counts
            if workloads:
                prepare(guest, directory)
        for workload in workloads:
            say(f"counts: {workload.name}")
            for _ in range(turns):
                result[workload.name].append({guest.name: _of(guest, workload) for guest in guests})
    return result


def _of(guest: ProcessGuest, workload: Workload) -> dict[str, int]:
    before = guest.counts
    guest.run(workload.argv)
    return {name: count if name in _STATES else count - before.get(name, 0) for name, count in guest.counts.items()}


def counts_text(measured: dict[str, list[Counts]]) -> str:
    """A table for each row; of several turns the least and the most."""
    lines = []
    for row, turns in measured.items():
        names = sorted({name for turn in turns for counts in turn.values() for name in counts})
        lines += [f"{row} ({len(turns)} {'turn' if len(turns) == 1 else 'turns'})", ""]
        for name in names:
            cells = [_range([turn[guest].get(name, 0) for turn in turns]) for guest in _GUESTS]
            if any(cell != "0" for cell in cells):
                lines.append(f"  {name:28}" + "".join(f"{cell:>34}" for cell in cells))
        lines.append("")
    heading = f"  {'':28}" + "".join(f"{guest:>34}" for guest in _GUESTS)
    return "\n".join([heading, *lines]).rstrip()


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
