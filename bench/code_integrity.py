# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-KCI costs: guests with lock-down and without, in turns, each turn a single command.

A computer's speed changes within seconds; the least of many turns changes little. Domain switches are counted: what
they would cost on hardware is not in the times of a machine whose switch is a function call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.guests import MEMORY
from bench.workloads import WORKLOADS, prepare
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.linux.kernel import debian_kernel
from veil.guest.linux.modules import collect_modules
from veil.image.services_image import services_from_text

__all__ = ["SWITCH_CYCLES", "CodeCost", "measure_code_integrity"]

#: A domain switch on the EPYC of the paper: VMGEXIT, the hypervisor, VMRUN.
SWITCH_CYCLES = 7135
#: Signed, 24 KiB, needs no other.
_MODULE = "llc"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
_BOOTS = 3
_MODES = ("off", "on")


@dataclass
class CodeCost:
    """One row: by mode ("off", "on") the processor seconds of each turn, and counts of the last one."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in _MODES})
    switches: dict[str, int] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    """Of the guest's kernel and programs; none unless the engine counts them (VEIL_ENGINE_COUNTS=1)."""

    def least(self, mode: str) -> float:
        """Seconds of the fastest turn."""
        return min(self.seconds[mode])

    @property
    def more(self) -> float:
        """What lock-down adds, as a part of the whole."""
        return self.least("on") / self.least("off") - 1


class _Guest:
    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.running = False
        self.vm = ConfidentialVM(MEMORY, services=services_from_text([f"kci:mode={mode}"]), fresh=True)

    def boot(self) -> None:
        self.vm.start()
        self.running = True
        self.run(["true"])

    def run(self, argv: Sequence[str]) -> None:
        done = self.vm.run(argv, env=_ENVIRONMENT)
        if done.exit_status:
            raise RuntimeError(f"{argv} ended with status {done.exit_status}: {done.stderr!r}")

    def put(self, source: Path, target: str) -> None:
        self.vm.copy_in(source, target)

    def counts(self) -> tuple[int, int]:
        """Domain switches and instructions since the launch."""
        if not self.running:
            return 0, 0
        switches = self.vm.hypervisor.counters().get("msr RUN_VMPL", 0)
        return switches, self.vm.machine.counters.instructions

    def measure(self, row: CodeCost, action: Callable[[], object]) -> None:
        switches, instructions = self.counts()
        start = time.process_time()
        action()
        row.seconds[self.mode].append(time.process_time() - start)
        now = self.counts()
        row.switches[self.mode], row.instructions[self.mode] = now[0] - switches, now[1] - instructions


def measure_code_integrity(directory: Path, say: Callable[[str], None], turns: int = 100) -> list[CodeCost]:
    """Boots, a module loaded and unloaded `turns` times, ordinary programs."""
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
            for mode in _MODES:
                say(f"code integrity {mode}: boot {number + 1} of {_BOOTS}")
                guest = _Guest(mode)
                guests.append(guest)
                stack.callback(guest.vm.close)
                guest.measure(boot, guest.boot)
            if number < _BOOTS - 1:
                while guests:
                    guests.pop().vm.close()
        for guest in guests:
            guest.put(file, "/root/module.ko")
        say(f"code integrity: {turns} turns of {_MODULE}")
        for _ in range(turns):
            for guest in guests:
                guest.measure(load, lambda: guest.run(["insmod", "/root/module.ko"]))  # noqa: B023
                guest.measure(unload, lambda: guest.run(["rmmod", _MODULE]))  # noqa: B023
        for guest in guests:
            prepare(guest, directory)  # type: ignore[arg-type]
        for workload, row in zip(WORKLOADS, programs, strict=True):
            say(f"code integrity: {workload.name}")
            for _ in range(max(3, turns // 20)):
                for guest in guests:
                    guest.measure(row, lambda: guest.run(workload.argv))  # noqa: B023
    return [boot, load, unload, *programs]
