# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m bench"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import micro
from bench.attestation import measure_attestation, measure_cold
from bench.follow import measure_follow
from bench.guests import QEMU, Guest, QemuFailed, QemuGuest, QemuImage, VeilGuest, qemu_version
from bench.log import measure_log
from bench.report import Report
from bench.workloads import RUNS, measure_boots, measure_workloads
from veil.errors import VeilError
from veil.snp import build_engine


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _guests(report: Report, directory: Path) -> list[Callable[[], Guest]]:
    makers: list[Callable[[], Guest]] = [partial(VeilGuest, monitor=True), partial(VeilGuest, monitor=False)]
    version = qemu_version()
    if version is None:
        report.notes.append(f"{QEMU} is missing, so there are no figures for it (Debian: apt install qemu-system-x86)")
        _say(report.notes[-1])
        return makers
    image = QemuImage(directory)
    report.notes.append(
        f"QEMU {version}, -accel tcg,thread=single, starts the same vmlinux ({image.release}) by PVH; its boot has "
        "SeaBIOS in it, Veil's the measured launch."
    )
    return [*makers, partial(QemuGuest, image)]


def _measure(report: Report, directory: Path, *, short: bool) -> None:
    build_engine(_say)
    if not short:
        _say("boots")
        row, guests = measure_boots(_guests(report, directory))
        with contextlib.ExitStack() as stack:
            for guest in guests:
                stack.callback(guest.close)
            report.rows = [row, *measure_workloads(guests, directory, _say)]
        report.notes.append(f"Medians of {RUNS} runs, the guests in turn; times of commands from sending to exit.")
    _say("transitions")
    report.latencies += micro.measure_calls(directory)
    guest = VeilGuest(monitor=True)
    try:
        report.latencies += micro.measure_traps(guest.vm, directory)
        _say("snapshots")
        report.latencies += micro.measure_snapshots(guest.vm, directory)
        _say("attestation")
        report.rates += measure_attestation(guest.vm)
    finally:
        guest.close()
    report.latencies += micro.measure_command()
    report.latencies += measure_cold()


def main() -> int:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(prog="bench", description="Figures of Veil, against QEMU where it is installed.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--latencies", action="store_true", help="only the figures that need no comparison")
    parser.add_argument("--log", action="store_true", help="only how fast a log is verified")
    parser.add_argument("--follow", action="store_true", help="only how soon a follower has an entry")
    options = parser.parse_args()
    report = Report()
    try:
        with tempfile.TemporaryDirectory(prefix="veil-bench-") as directory:
            if options.follow:
                _say("a follower")
                report.latencies += measure_follow(Path(directory))
                print(json.dumps(report.json(), indent=2) if options.json else report.text())
                return 0
            if not options.log:
                _measure(report, Path(directory), short=options.latencies)
            _say("the log")
            report.rates += measure_log(Path(directory))
    except (VeilError, QemuFailed) as error:
        _say(str(error))
        return 1
    print(json.dumps(report.json(), indent=2) if options.json else report.text())
    return 0


sys.exit(main())
