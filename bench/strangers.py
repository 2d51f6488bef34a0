# SPDX-License-Identifier: GPL-2.0-or-later
"""What hostile users do to a guest that is busy, and to an owner who wants in.

On a computer with several processors the CVM has the first one for itself, host and all. Strangers and owner, who would
come from elsewhere, have the others: else the guest's loss would be the attackers' share of its processor.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.hostile import KINDS
from bench.report import Strangers
from veil.cvm import ConfidentialVM
from veil.formats.log_settings import LogSettings
from veil.image.services_image import protected_services

__all__ = ["measure_strangers"]

_ALONE = "alone"
_LOOPS = 60_000
_WORK = ["sh", "-c", f"i=0; while [ $i -lt {_LOOPS} ]; do i=$((i+1)); done"]
_RUNS = 3
_SETTLE_S = 1.5
#: How often an owner comes at least, and how long that may take.
_TRIES, _LONGEST_S = 30, 60.0


def _share_processors() -> set[int]:
    """Take the first one; those for the others are returned."""
    first, *others = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(0, {first})
    return set(others) or {first}


@contextlib.contextmanager
def _process(processors: set[int], *arguments: str, output: Path | None = None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(output.open("wb")) if output is not None else None
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=out)
        os.sched_setaffinity(process.pid, processors)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _work(vm: ConfidentialVM) -> tuple[float, float]:
    """Seconds of a program: by the clock, and of this thread's processor time."""
    begin, cpu = time.perf_counter(), time.thread_time()
    vm.run(_WORK)
    return time.perf_counter() - begin, time.thread_time() - cpu


def _measure(
    vm: ConfidentialVM,
    port: int,
    kind: str,
    connections: int,
    alone: tuple[float, float] | None,
    processors: set[int],
) -> tuple[Strangers, tuple[float, float]]:
    """`alone`: what the guest's program takes when nobody else is there."""
    with contextlib.ExitStack() as stack:
        answers = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="veil-bench-"))) / "owner"
        if kind != _ALONE:
            stack.enter_context(_process(processors, "bench.hostile", kind, str(port), str(connections)))
        vm.hypervisor.run(timeout=_SETTLE_S)
        with _process(processors, "bench.owner", str(port), output=answers):
            vm.hypervisor.run(timeout=_SETTLE_S)
            end = time.monotonic() + _LONGEST_S
            times = [_work(vm) for _ in range(_RUNS)]
            while len(answers.read_text().splitlines()) < _TRIES and time.monotonic() < end:
                times.append(_work(vm))
        lines = answers.read_text().splitlines()
    took = statistics.median(time for time, _ in times), statistics.median(cpu for _, cpu in times)
    base = alone or took
    entries = [float(line) for line in lines if line.replace(".", "", 1).isdigit()]
    failures = [line for line in lines if not line.replace(".", "", 1).isdigit()]
    found = Strangers(
        0 if kind == _ALONE else connections, kind, base[0] / took[0], base[1] / took[1],
        statistics.median(entries) if entries else float("nan"), max(entries, default=float("nan")),
        len(entries), failures,
    )  # fmt: skip
    return found, took


def measure_strangers(say: Callable[[str], None], only: list[str] | None, connections: int) -> list[Strangers]:
    """Each kind in turn (of them those with one of the words `only`), on one guest; the guest alone first and last."""
    kinds = [kind for kind in KINDS if only is None or any(word in kind for word in only)]
    found = []
    processors = _share_processors()
    with ConfidentialVM("256M", 1, services=protected_services(LogSettings(full="drop"))) as vm:
        listener = vm.listen()
        try:
            vm.run(_WORK)
            alone: tuple[float, float] | None = None
            for kind in (_ALONE, *kinds, _ALONE):
                say(f"strangers: {kind}")
                one, took = _measure(vm, listener.address[1], kind, connections, alone, processors)
                alone = alone or took
                found.append(one)
        finally:
            listener.close()
    return found
