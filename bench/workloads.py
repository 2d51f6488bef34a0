# SPDX-License-Identifier: GPL-2.0-or-later
"""The workloads: the same commands for every guest, in turn, so that a busy computer slows all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.guests import Guest
from bench.programs import build_program
from bench.report import Row

__all__ = ["RUNS", "measure_boots", "measure_workloads"]

RUNS = 7

_PREPARE = (
    "mount -t tmpfs -o size=200m tmpfs /mnt && head -c 67108864 /dev/zero >/mnt/zeros && "
    "i=0; while [ $i -lt 16 ]; do cat /bin/busybox; i=$((i+1)); done | head -c 20971520 >/mnt/text"
)
_FORKS = "i=0; while [ $i -lt 500 ]; do /bin/true; i=$((i+1)); done"


@dataclass(frozen=True)
class Workload:
    """A command and what it shows."""

    name: str
    argv: Sequence[str]


WORKLOADS = (
    Workload("sha256sum of 64 MiB", ["sha256sum", "/mnt/zeros"]),
    Workload("gzip of 20 MiB", ["sh", "-c", "gzip -c /mnt/text >/dev/null"]),
    Workload("500 times fork and exec, in a shell", ["sh", "-c", _FORKS]),
    Workload("random access over 64 MiB", ["/root/memory"]),
)


def measure_boots(makers: Sequence[Callable[[], Guest]]) -> tuple[Row, list[Guest]]:
    """Boot every guest some times; the last ones stay."""
    seconds: dict[str, list[float]] = {}
    guests: list[Guest] = []
    try:
        for turn in range(RUNS):
            for make in makers:
                guest = make()
                seconds.setdefault(guest.name, []).append(guest.boot_seconds)
                if turn < RUNS - 1:
                    guest.close()
                else:
                    guests.append(guest)
    except BaseException:
        for guest in guests:
            guest.close()
        raise
    return _row("boot to first command", seconds), guests


def measure_workloads(guests: Sequence[Guest], directory: Path, say: Callable[[str], None]) -> list[Row]:
    """Every workload on every guest, warm."""
    program = build_program("memory", directory)
    for guest in guests:
        guest.put(program, "/root/memory")
        guest.run(["sh", "-c", _PREPARE])
    rows = []
    for workload in WORKLOADS:
        say(workload.name)
        seconds: dict[str, list[float]] = {}
        for turn in range(RUNS + 1):
            for guest in guests:
                took = guest.run(workload.argv)
                # The first warms caches, the guest's and those of translated code.
                if turn:
                    seconds.setdefault(guest.name, []).append(took)
        rows.append(_row(workload.name, seconds))
    return rows


def _row(name: str, seconds: dict[str, list[float]]) -> Row:
    return Row(name, {guest: statistics.median(times) for guest, times in seconds.items()})
