# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of docs/fidelity.md, and the sums."""

from __future__ import annotations

from collections.abc import Mapping

from kvm_unit_tests.judgement import Judgement
from veil.formats.printable import one_line

__all__ = ["line", "sums", "table"]


def line(name: str, judgement: Judgement) -> str:
    """One test, for whoever waits."""
    outcome = judgement.outcome
    words = f"{len(outcome.passed)} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped"
    if not judgement.as_expected:
        return f"{name}: NOT AS EXPECTED: {words}"
    return f"{name}: as expected: {words}"


def table(judgements: Mapping[str, Judgement], not_applicable: Mapping[str, str]) -> str:
    """In Markdown: the runs in their order, then tests with one reason together."""
    rows = ["| Test | Passed | Failed | Skipped | Why |", "|---|---|---|---|---|"]
    for name, judgement in judgements.items():
        outcome = judgement.outcome
        counts = f"{len(outcome.passed)} | {len(outcome.failed)} | {len(outcome.skipped)}"
        why = one_line("; ".join((*judgement.reasons, *judgement.surprises))).replace("|", "\\|")
        rows.append(f"| {name} | {counts} | {why} |")
    by_reason: dict[str, list[str]] = {}
    for name, reason in not_applicable.items():
        by_reason.setdefault(reason, []).append(name)
    rows += ["", "| Not applicable | Why |", "|---|---|"]
    rows += [f"| {', '.join(names)} | {reason} |" for reason, names in by_reason.items()]
    return "\n".join(rows) + "\n"


def sums(judgements: Mapping[str, Judgement], not_applicable: int) -> str:
    """The last line."""
    outcomes = [judgement.outcome for judgement in judgements.values()]
    passed, failed, skipped = (
        sum(len(getattr(outcome, name)) for outcome in outcomes) for name in ("passed", "failed", "skipped")
    )
    surprising = sum(not judgement.as_expected for judgement in judgements.values())
    return (
        f"{len(outcomes)} tests ran, {surprising} not as expected; lines: {passed} passed, {failed} failed, "
        f"{skipped} skipped; {not_applicable} tests are not applicable"
    )
