# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m bench"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import micro
from bench.attestation import measure_attestation, measure_cold
from bench.code_integrity import measure_code_integrity
from bench.counts import counts_text, measure_counts
from bench.enclaves.evaluation import PARTS, measure_enclaves
from bench.firmware import measure_firmware
from bench.follow import measure_follow
from bench.guests import (
    QEMU,
    Guest,
    ProcessGuest,
    QemuFailed,
    QemuGuest,
    QemuImage,
    VeilGuest,
    WorkerFailed,
    qemu_version,
)
from bench.log import measure_log
from bench.pairs import measure_pairs
from bench.report import Report
from bench.strangers import measure_strangers
from bench.workloads import WORKLOADS, Workload
from veil.errors import VeilError
from veil.snp import build_engine


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _qemu(report: Report, directory: Path) -> list[Callable[[], Guest]]:
    version = qemu_version()
    if version is None:
        report.notes.append(f"{QEMU} is missing, so there are no figures for it (Debian: apt install qemu-system-x86)")
        _say(report.notes[-1])
        return []
    image = QemuImage(directory)
    report.notes.append(
        f"QEMU {version}, -accel tcg,thread=single, starts the same vmlinux ({image.release}) by PVH; its boot has "
        "SeaBIOS in it, Veil's the measured launch."
    )
    return [partial(QemuGuest, image)]


def _compare(report: Report, directory: Path, options: argparse.Namespace) -> None:
    report.rows = measure_pairs(
        [partial(ProcessGuest, "veil"), partial(ProcessGuest, "no monitor")],
        [] if options.no_qemu else _qemu(report, directory),
        directory,
        _say,
        pairs=options.pairs,
        turns=options.turns,
        boots=options.boots,
        workloads=_selected(options.only),
    )
    report.notes.append(
        f"{options.pairs} pairs. Of each pair's {options.boots} boots, and of the {options.turns} runs of each "
        "workload in the last of them, the least counts; of the pairs the median. Times of commands from sending to "
        "exit; processor time is user and system of the guest's process. VeilMon's and services' share is of all runs."
    )


def _selected(words: list[str] | None) -> list[Workload]:
    if words is None:
        return list(WORKLOADS)
    return [workload for workload in WORKLOADS if any(word in workload.name for word in words)]


def _latencies(report: Report, directory: Path) -> None:
    _say("transitions")
    report.latencies += micro.measure_calls(directory)
    guest = VeilGuest("veil")
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
    parser.add_argument("--pairs", type=int, default=20, help="how many pairs of fresh boots (default 20)")
    parser.add_argument("--turns", type=int, default=12, help="how often a guest runs a workload, after a first time")
    parser.add_argument("--boots", type=int, default=2, help="how often each guest of a pair is booted")
    parser.add_argument(
        "--only",
        action="append",
        metavar="WORD",
        help="only workloads (or kinds of strangers) with WORD in their name; 'boot': none, boots alone",
    )
    parser.add_argument("--no-qemu", action="store_true", help="leave QEMU out")
    parser.add_argument(
        "--connections", type=int, default=256, metavar="N", help="how many hostile connections (default 256)"
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--compare", action="store_true", help="only the comparison in pairs")
    part.add_argument("--counts", action="store_true", help="only what engine and host count, with and without VeilMon")
    part.add_argument("--latencies", action="store_true", help="only the figures that need no comparison")
    part.add_argument("--firmware", action="store_true", help="only how long stock firmware takes to start a kernel")
    part.add_argument("--log", action="store_true", help="only how fast a log is verified")
    part.add_argument("--code", action="store_true", help="only what lock-down by VeilS-KCI costs")
    part.add_argument("--follow", action="store_true", help="only how soon a follower has an entry")
    part.add_argument("--enclaves", action="store_true", help="only what VeilS-ENC costs (minutes; docs/enclaves.md)")
    part.add_argument("--strangers", action="store_true", help="only what hostile connections do to a guest")
    parser.add_argument("--short", action="store_true", help="with --enclaves: one turn of each, noisy")
    parser.add_argument("--part", choices=PARTS, action="append", help="with --enclaves: only this; may be repeated")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --enclaves: draw a picture (needs matplotlib)")
    options = parser.parse_args()
    if min(options.pairs, options.turns, options.boots, options.connections) < 1:
        parser.error("--pairs, --turns, --boots and --connections are 1 or more")
    report = Report()
    try:
        with tempfile.TemporaryDirectory(prefix="veil-bench-") as name:
            directory = Path(name)
            build_engine(_say)
            if options.counts:
                counts = measure_counts(directory, _say, workloads=_selected(options.only), turns=options.turns)
                print(json.dumps(counts, indent=2) if options.json else counts_text(counts))
                return 0
            if options.follow:
                _say("a follower")
                report.latencies += measure_follow(directory)
                print(json.dumps(report.json(), indent=2) if options.json else report.text())
                return 0
            if options.firmware:
                _say("stock firmware")
                report.rates += measure_firmware(directory, options.turns, qemu=not options.no_qemu)
                print(json.dumps(report.json(), indent=2) if options.json else report.text())
                return 0
            if options.enclaves:
                parts = options.part or PARTS
                found = measure_enclaves(_say, short=options.short, parts=parts, only=options.only or ())
                print(json.dumps(found.json(), indent=1) if options.json else found.text())
                if options.plot is not None:
                    found.plot(options.plot)
                return 0
            if options.code:
                report.code = measure_code_integrity(directory, _say)
                print(json.dumps(report.json(), indent=2) if options.json else report.text())
                return 0
            if options.strangers:
                report.strangers += measure_strangers(_say, options.only, options.connections)
                print(json.dumps(report.json(), indent=2) if options.json else report.text())
                return 0
            if not (options.latencies or options.log):
                _compare(report, directory, options)
            if not (options.compare or options.log):
                _latencies(report, directory)
            if not (options.compare or options.latencies or options.log):
                report.code = measure_code_integrity(directory, _say)
            if not options.compare:
                _say("the log")
                report.rates += measure_log(directory)
    except (VeilError, QemuFailed, WorkerFailed) as error:
        _say(str(error))
        return 1
    print(json.dumps(report.json(), indent=2) if options.json else report.text())
    return 0


sys.exit(main())
