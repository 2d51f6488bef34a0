# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m kvm_unit_tests: exit status 0 if all is as expected, 1 if not, 2 if nothing could be run, 130 on Ctrl-C."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kvm_unit_tests.checkout import Built, Test, build, read_tests
from kvm_unit_tests.errors import JudgeError
from kvm_unit_tests.expected import KNOWN, NOT_APPLICABLE, NOT_FOR_EFI, Known
from kvm_unit_tests.guest import Guest
from kvm_unit_tests.judgement import Judgement, judge
from kvm_unit_tests.output import End, Outcome
from kvm_unit_tests.report import line, sums, table
from veil.errors import VeilError
from veil.formats.printable import one_line
from veil.guest.ovmf.package import DEBIAN_FIRMWARE
from veil.snp import SnpError

#: Seconds. The longest take a minute on a computer with nothing else to do.
_TIMEOUT = 300.0


class _Runs(Protocol):
    def run(self, test: Test, program: Path) -> Outcome: ...


def _say(text: str) -> None:
    # Tests choose words of it.
    print(one_line(f"kvm-unit-tests: {text}"), file=sys.stderr, flush=True)


def chosen_tests(tests: Sequence[Test], patterns: Sequence[str]) -> list[Test]:
    """Those that are meant, or without patterns all that are applicable. Raises JudgeError for one that is missing."""
    for pattern in patterns:
        if not any(fnmatch.fnmatch(test.name, pattern) for test in tests):
            raise JudgeError(f"the checkout has no test that is called {pattern}")
    if patterns:
        return [test for test in tests if any(fnmatch.fnmatch(test.name, pattern) for pattern in patterns)]
    return [test for test in tests if test.name not in NOT_APPLICABLE]


def not_applicable(tests: Sequence[Test], chosen: Sequence[Test], built: Built) -> dict[str, str]:
    """Why what is not run is not."""
    reasons = {test.name: NOT_APPLICABLE[test.name] for test in tests if test.name in NOT_APPLICABLE}
    known = built.programs.keys() | built.failed.keys()
    return reasons | {test.name: NOT_FOR_EFI for test in chosen if test.program not in known}


def run_tests(
    tests: Sequence[Test],
    built: Built,
    guest: _Runs,
    known: Mapping[str, Known],
    say: Callable[[str], None],
) -> dict[str, Judgement]:
    """Each in turn, of those that are for EFI."""
    found: dict[str, Judgement] = {}
    for test in tests:
        if test.program in built.programs:
            outcome = guest.run(test, built.programs[test.program])
        elif test.program in built.failed:
            outcome = Outcome(End.UNBUILT, why=built.failed[test.program])
        else:
            continue
        judgement = found[test.name] = judge(outcome, known.get(test.name, Known()))
        say(line(test.name, judgement))
        for surprise in judgement.surprises:
            say(f"  {surprise}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m kvm_unit_tests", description=__doc__)
    parser.add_argument(
        "--kvm-unit-tests", type=Path, required=True, metavar="DIR", help="your checkout; it is not changed"
    )
    parser.add_argument("--firmware", default=DEBIAN_FIRMWARE, metavar="PATH|debian", help="as of `veil run`")
    parser.add_argument("--cpu-features", default="xsave,pku,debug-swap", metavar="NAMES", help="as of `veil run`")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT, metavar="SECONDS", help="for one test")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table there, in Markdown")
    parser.add_argument("--output", action="store_true", help="show what tests print")
    parser.add_argument("--list", action="store_true", help="only say which tests there are")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="only these (name, or pattern as in the shell)")
    options = parser.parse_args(arguments)
    try:
        tests = read_tests(options.kvm_unit_tests)
        if options.list:
            for test in tests:
                print(f"{test.name}: {NOT_APPLICABLE.get(test.name, 'is run')}")
            return 0
        chosen = chosen_tests(tests, options.tests)
        with tempfile.TemporaryDirectory(prefix="kvm-unit-tests-") as place:
            _say("building a copy of the checkout")
            built = build(options.kvm_unit_tests, Path(place), [test.program for test in chosen])
            show = sys.stdout.buffer.write if options.output else lambda data: None
            features = tuple(filter(None, options.cpu_features.split(",")))
            guest = Guest(options.firmware, features, options.timeout, _say, lambda data: (show(data), None)[1])
            found = run_tests(chosen, built, guest, KNOWN, _say)
            left_out = not_applicable(tests, chosen, built)
        if options.table is not None:
            options.table.write_text(table(found, left_out))
    except (JudgeError, VeilError, SnpError, OSError) as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    print(sums(found, len(left_out)))
    return int(not found or any(not judgement.as_expected for judgement in found.values()))


if __name__ == "__main__":
    sys.exit(main())
