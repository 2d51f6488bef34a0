# SPDX-License-Identifier: GPL-2.0-or-later
"""An outcome against what is known."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvm_unit_tests.expected import Known
from kvm_unit_tests.output import End, Outcome

__all__ = ["Judgement", "judge"]

#: kvm-unit-tests' status if all was skipped (lib/report.c: 77, which is QEMU's).
_ALL_SKIPPED = 77 >> 1


@dataclass(frozen=True)
class Judgement:
    """`surprises` are one line each, of what nobody expected; `reasons` are those of what failed as known."""

    outcome: Outcome
    known_failures: int = 0
    reasons: tuple[str, ...] = ()
    surprises: tuple[str, ...] = field(default=())

    @property
    def as_expected(self) -> bool:
        """Is nothing other than it is known to be?"""
        return not self.surprises


def judge(outcome: Outcome, known: Known) -> Judgement:
    """Each failing line must be known, and what always fails must fail: else the table is not true any more."""
    if outcome.end is End.UNBUILT:
        return Judgement(outcome, surprises=(_end(outcome),))
    surprises: list[str] = []
    reasons: dict[str, None] = {}
    met: set[int] = set()
    count = 0
    for text in outcome.failed:
        found = [index for index, item in enumerate(known.failures) if item.matches(text)]
        if not found:
            surprises.append(f"FAIL: {text}")
            continue
        count += 1
        met.add(found[0])
        reasons[known.failures[found[0]].reason] = None
    for index, item in enumerate(known.failures):
        if item.always and index not in met:
            surprises.append(f"it is known to fail, and did not: {item.pattern}")
    if known.no_end is not None and known.no_end.matches(outcome):
        reasons[known.no_end.reason] = None
    elif known.no_end is not None:
        surprises.append(f"{_end(outcome)}; it is known to end otherwise: {known.no_end.reason}")
    else:
        surprises += _surprising_end(outcome)
    says_nothing = outcome.end is End.EXITED and not outcome.passed and not outcome.failed
    if says_nothing and known.says_nothing:
        reasons[known.says_nothing] = None
    elif says_nothing:
        # A processor that has lost what is tested would pass else.
        surprises.append(
            f"nothing passed, and nothing failed{': ' if outcome.skipped else ''}{'; '.join(outcome.skipped)}"
        )
    elif known.says_nothing:
        surprises.append(f"it is known to pass and to fail nothing, and did: {known.says_nothing}")
    return Judgement(outcome, count, tuple(reasons), tuple(surprises))


def _surprising_end(outcome: Outcome) -> list[str]:
    if outcome.end is not End.EXITED:
        return [_end(outcome)]
    # What reports no line (a test that aborts, or prints words of its own) has its exit status alone.
    if outcome.status not in (0, _ALL_SKIPPED) and not outcome.failed:
        return [f"exit status {outcome.status}"]
    return []


def _end(outcome: Outcome) -> str:
    return f"{outcome.end}{': ' if outcome.why else ''}{outcome.why}"
