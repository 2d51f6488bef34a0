# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-KCI costs: guests with lock-down and without, in turns, each turn a single command of each.

A computer's speed changes within seconds. What slows it for a while slows both of a pair, so of each turn the ratio
counts; which of the guests comes first is random. Where a kernel lies in memory is random in each boot and makes
several per cent, so the turns are shared out among boots. The least of each guest's turns stands beside it. Domain
switches are counted: what they would cost on hardware is not in the times of a machine whose switch is a function call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.guests import Cost, VeilGuest, domain_switches
from bench.intervals import FEWEST, Interval, median_interval
from bench.workloads import WORKLOADS, prepare
from veil.cache import Cache
from veil.guest.linux.kernel import debian_kernel
from veil.guest.linux.modules import collect_modules
from veil.image.services_image import services_from_text

__all__ = ["SWITCH_CYCLES", "CodeCost", "measure_code_integrity"]

#: A domain switch on the EPYC of the paper: VMGEXIT, the hypervisor, VMRUN.
SWITCH_CYCLES = 7135
#: Signed, 24 KiB, needs no other.
_MODULE = "llc"
_BOOTS = 3
_MODES = ("off", "on")


@dataclass
class CodeCost:
    """One row: by mode ("off", "on") the processor seconds of each turn, and counts of the last one."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in _MODES})
    hosted: list[float] = field(default_factory=list)
    """Of these, with lock-down: the seconds by the clock in which VeilMon and the services ran."""
    switches: dict[str, int] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    """Of the guest's kernel and programs; none unless the engine counts them (VEIL_ENGINE_COUNTS=1)."""

    def least(self, mode: str) -> float:
        """Seconds of the fastest turn."""
        return min(self.seconds[mode])

    @property
    def more(self) -> float:
        """What lock-down adds, as a part of the whole, by the leasts."""
        return self.least("on") / self.least("off") - 1

    @property
    def ratios(self) -> list[float]:
        """Of each turn: processor time with lock-down to that without."""
        return [on / off for on, off in zip(self.seconds["on"], self.seconds["off"], strict=True)]

    @property
    def interval(self) -> Interval | None:
        """The median of the turns' ratios; None: too few turns for an interval of 95 %."""
        return median_interval(self.ratios) if len(self.ratios) >= FEWEST else None


class _Guest(VeilGuest):
    def __init__(self, mode: str) -> None:
        """`mode`: VeilS-KCI's."""
        super().__init__(mode, services=services_from_text([f"kci:mode={mode}"]))

    def counts(self) -> tuple[int, int]:
        """Domain switches and instructions since the launch."""
        return domain_switches(self.vm), self.vm.machine.counters.instructions

    def note_boot(self, row: CodeCost) -> None:
        """What its boot took."""
        self._note(row, self.boot)
        row.switches[self.name], row.instructions[self.name] = self.counts()

    def _note(self, row: CodeCost, cost: Cost) -> None:
        row.seconds[self.name].append(cost.processor)
        if self.name == "on":
            row.hosted.append(cost.hosted)

    def measure(self, row: CodeCost, argv: Sequence[str]) -> None:
        """One turn of a command."""
        switches, instructions = self.counts()
        self._note(row, self.run(argv))
        now = self.counts()
        row.switches[self.name], row.instructions[self.name] = now[0] - switches, now[1] - instructions


def measure_code_integrity(directory: Path, say: Callable[[str], None], turns: int = 100) -> list[CodeCost]:
    """Boots, a module loaded and unloaded `turns` times after each, ordinary programs."""
    tree = debian_kernel(Cache()).modules
    assert tree is not None
    ((_, module),) = collect_modules(tree, [_MODULE])
    file = directory / f"{_MODULE}.ko"
    file.write_bytes(module)
    boot, load, unload = CodeCost("boot to lock-down"), CodeCost("module load"), CodeCost("module unload")
    programs = [CodeCost(workload.name) for workload in WORKLOADS]
    with ExitStack() as stack:
        guests: list[_Guest] = []
        for number in range(_BOOTS):
            while guests:
                guests.pop().close()
            for mode in _MODES:
                say(f"code integrity {mode}: boot {number + 1} of {_BOOTS}")
                guest = _Guest(mode)
                guests.append(guest)
                stack.callback(guest.close)
                guest.note_boot(boot)
            for guest in guests:
                guest.put(file, "/root/module.ko")
            say(f"code integrity: turns of {_MODULE}")
            for _ in range(turns):
                for row, argv in ((load, ["insmod", "/root/module.ko"]), (unload, ["rmmod", _MODULE])):
                    for guest in random.sample(guests, len(guests)):
                        guest.measure(row, argv)
        for guest in guests:
            prepare(guest, directory)
        for workload, row in zip(WORKLOADS, programs, strict=True):
            say(f"code integrity: {workload.name}")
            for _ in range(max(3, turns // 8)):
                for guest in random.sample(guests, len(guests)):
                    guest.measure(row, workload.argv)
    return [boot, load, unload, *programs]
