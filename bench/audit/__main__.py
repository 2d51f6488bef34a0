# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m bench.audit"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from bench.audit.evaluation import measure_programs
from bench.audit.guests import LogGuest, Way, boot_once
from bench.audit.path import measure_path
from bench.audit.programs import PROGRAMS, RULES
from bench.audit.report import json_report, plot, text_report
from bench.report import machine_name
from veil.errors import VeilError
from veil.snp import build_engine


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(prog="bench.audit", description="What VeilS-LOG costs programs that are audited.")
    parser.add_argument("--short", action="store_true", help="shorter runs and fewer of them: half a minute, noisy")
    parser.add_argument("--rules", choices=RULES, default="flow", help="what is audited (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture (PNG; needs matplotlib)")
    options = parser.parse_args()
    turns, scale = (3, 1) if options.short else (11, 4)
    try:
        build_engine(_say)
        with tempfile.TemporaryDirectory(prefix="veil-bench-") as directory, contextlib.ExitStack() as stack:
            snapshot = Path(directory) / "guest"
            _say("booting and preparing the guest")
            boot_once(snapshot)
            guests = [LogGuest(snapshot, way, RULES[options.rules]) for way in Way]
            for guest in guests:
                stack.callback(guest.close)
            outcomes = measure_programs(guests, PROGRAMS, turns=turns, scale=scale, say=_say)
            path = None
            if options.rules == "flow":
                _say("a record's path")
                by_way = {guest.way: guest for guest in guests}
                path = measure_path(by_way[Way.AUDIT], by_way[Way.LOG])
    except VeilError as error:
        _say(str(error))
        return 1
    print(json.dumps(json_report(outcomes, path), indent=1) if options.json else text_report(outcomes, path))
    if not options.json:
        print(f"\n{machine_name()}; rules: {options.rules}; processor time, medians of {turns} turns.")
    if options.plot is not None:
        plot(outcomes, options.plot)
    return 0


sys.exit(main())
