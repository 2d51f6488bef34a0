# SPDX-License-Identifier: GPL-2.0-or-later
"""Fresh boots in pairs: what a guest costs with VeilMon and services, against one without, side by side.

Both guests of a pair are booted afresh, each in a process of its own, and run each workload in turn, so what slows the
computer for a while slows both. Of each pair one ratio counts. The order within a turn is random.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.guests import Cost, Guest
from bench.report import Row
from bench.workloads import BOOT, WORKLOADS, Workload, prepare

__all__ = ["measure_pairs"]

Maker = Callable[[], Guest]


def measure_pairs(
    pair: Sequence[Maker],
    others: Sequence[Maker],
    directory: Path,
    say: Callable[[str], None],
    *,
    pairs: int,
    turns: int,
    boots: int,
    workloads: Sequence[Workload] = WORKLOADS,
    other_rounds: int = 5,
) -> list[Row]:
    """The boot's row and one for each workload.

    `pair`: makers of the two guests; `others` are booted and measured beside the first `other_rounds` pairs. Each is
    booted `boots` times; the last one runs each workload once to get warm, and then `turns` times.
    """
    rows = {name: Row(name) for name in (BOOT, *(workload.name for workload in workloads))}
    for make in pair:
        make().close()  # fills caches: the first pair's boots would compile the driver and unpack the kernel
    start = time.monotonic()
    for number in range(pairs):
        makers = [*pair, *(others if number < other_rounds else ())]
        with contextlib.ExitStack() as stack:
            before = _boots(makers, boots - 1)
            guests: list[Guest] = []
            for make in random.sample(makers, len(makers)):
                guests.append(make())
                stack.callback(guests[-1].close)
            for guest in guests:
                rows[BOOT].add(guest.name, [*before.get(guest.name, ()), guest.boot])
            for guest in guests if workloads else ():
                prepare(guest, directory)
            for workload in workloads:
                for name, costs in _turns(guests, workload, turns).items():
                    rows[workload.name].add(name, costs)
        left = (time.monotonic() - start) / (number + 1) * (pairs - number - 1)
        ratios = ", ".join(f"{row.ratios[-1]:.3f}" for row in rows.values())
        say(f"pair {number + 1} of {pairs}: {ratios}; about {left / 60:.0f} min left")
    return list(rows.values())


def _boots(makers: Sequence[Maker], boots: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {}
    for _ in range(boots):
        for make in random.sample(makers, len(makers)):
            guest = make()
            costs.setdefault(guest.name, []).append(guest.boot)
            guest.close()
    return costs


def _turns(guests: Sequence[Guest], workload: Workload, turns: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {guest.name: [] for guest in guests}
    for turn in range(turns + 1):
        for guest in random.sample(guests, len(guests)):
            cost = guest.run(workload.argv)
            # The first warms caches, the guest's and those of translated code.
            if turn:
                costs[guest.name].append(cost)
    return costs
