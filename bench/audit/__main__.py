# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m bench.audit"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from bench.audit.evaluation import FULL, SHORT, measure_programs
from bench.audit.guests import LogGuest, Setup, boot_once
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
    parser.add_argument("--short", action="store_true", help="one short round: two minutes, noisy")
    parser.add_argument(
        "--rules", choices=RULES, action="append", metavar="NAME",
        help=f"what is audited; may be repeated (default: all of {', '.join(RULES)})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture (PNG; needs matplotlib)")
    options = parser.parse_args()
    effort = SHORT if options.short else FULL
    try:
        build_engine(_say)
        with tempfile.TemporaryDirectory(prefix="veil-bench-") as directory, contextlib.ExitStack() as stack:
            snapshot = Path(directory) / "guest"
            _say("booting and preparing the guest")
            boot_once(snapshot)
            names = options.rules or list(RULES)
            outcomes = measure_programs(snapshot, PROGRAMS, names, effort, _say)
            _say("a record's path")
            setups = [Setup(driver, "transfers") for driver in (False, True)]
            audit, log = (stack.enter_context(contextlib.closing(LogGuest(snapshot, setup))) for setup in setups)
            path = measure_path(audit, log, turns=1 if options.short else 5)
    except VeilError as error:
        _say(str(error))
        return 1
    print(json.dumps(json_report(outcomes, path), indent=1) if options.json else text_report(outcomes, path))
    if not options.json:
        print(f"\n{machine_name()}; processor time; medians and quartiles of {effort.rounds} round(s).")
    if options.plot is not None:
        plot(outcomes, options.plot)
    return 0


sys.exit(main())
