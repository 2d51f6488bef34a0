# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs verify, and how findings are shown."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veil.cli.checks import failures_are_1
from veil.cli.exit_statuses import EXIT_FINDINGS
from veil.cli.option_types import SOME_SECONDS
from veil.cli.output import emit_json, say, tell

if TYPE_CHECKING:
    from veil.remote.log.analysis import LogAnalysis
    from veil.remote.log.findings import Finding
    from veil.remote.log.reader import LogState

__all__ = ["count_findings", "say_findings", "verify"]


def say_findings(analysis: LogAnalysis, *, since: int = 0, only_trouble: bool = False) -> int:
    """Findings from number `since` on, on stderr; returns how many there are."""
    items = analysis.findings.items
    for item in items[since:]:
        if item.trouble or not only_trouble:
            tell(_line(item))
    return len(items)


def count_findings(analysis: LogAnalysis) -> dict[str, Any]:
    """For JSON."""
    found = analysis.findings
    return {
        "trouble": found.trouble,
        "findings": [item.json() for item in found.items],
        "counts": {kind.value: count for kind, count in found.counts.items()},
    }


def _line(item: Finding) -> str:
    from veil.remote.log.findings import claimed_text, machine_text

    word = "TROUBLE" if item.trouble else "note"
    return (
        f"{word:7}  entry {item.entry}, {machine_text(item.time_ns)} "
        f"(the kernel said {claimed_text(item.claimed_ms)}): {item.words}"
    )


@click.command()
@click.option("--to", "folder", default="veil-log", show_default=True, metavar="DIR", help="The folder.")
@click.option(
    "--silence",
    default=5.0,
    show_default=True,
    type=SOME_SECONDS,
    metavar="SECONDS",
    help="A kernel that gives no sign of life for longer is a finding; it beats each second by default.",
)
@click.option(
    "--untrusted-from",
    type=click.IntRange(min=0),
    metavar="ENTRY",
    help="You know that the kernel was compromised from this entry on: findings there are notes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@failures_are_1
def verify(folder: str, silence: float, untrusted_from: int | None, as_json: bool) -> int:
    """Hash the folder's entries again, compare them with the signed head, and say what looks wrong in them.

    That the entries are those that were made, at these times and in this order, is proved. What they say is the
    kernel's word. Findings tell where it contradicts itself, is silent, or counts what it did not hand over; times are
    the machine's since its launch, with the last time that the kernel claimed.

    Exit status: 0 verified, and no trouble; 3 verified, and findings mean trouble; 1 not verified; 125 there was
    nothing that could be verified.
    """
    from veil.remote.log.analysis import LogAnalysis
    from veil.remote.log.folder import LogFolder

    start = time.monotonic()
    analysis = LogAnalysis(silence_ns=int(silence * 1e9), untrusted_from=untrusted_from)
    place = LogFolder(Path(folder))
    state = place.known()
    for entry in place.verified():
        analysis.feed(entry)
    analysis.finish(state.seen.head if state is not None and state.seen is not None else None)
    seconds = time.monotonic() - start
    first = analysis.findings.first_distrusted
    found = first.distrusted_from if first is not None else None
    trusted = min((number for number in (found, untrusted_from) if number is not None), default=None)
    if as_json:
        value = {**vars(analysis.summary), **count_findings(analysis), "untrusted_from": trusted}
        emit_json({**value, "head": _head(state), "seconds": round(seconds, 3)})
    else:
        _say_verified(analysis, state)
        _say_all(sorted(analysis.findings.items, key=lambda item: item.entry))
        for kind, more in analysis.findings.unlisted():
            say(f"         and {more} more of {kind.value}")
        if trusted is not None:
            _say_moment(trusted, first, untrusted_from)
    return EXIT_FINDINGS if analysis.findings.trouble else 0


def _say_all(items: list[Finding]) -> None:
    """Rules come in dozens: of a run of the same harmless kind, the first and how many follow."""
    for (kind, trouble), run in itertools.groupby(items, key=lambda item: (item.kind, item.trouble)):
        first, *rest = run
        say(_line(first))
        if trouble:
            for item in rest:
                say(_line(item))
        elif rest:
            say(f"         and {len(rest)} more of {kind.value} up to entry {rest[-1].entry}")


def _head(state: LogState | None) -> dict[str, Any] | None:
    if state is None or state.seen is None:
        return None
    seen = state.seen
    return {
        "size": seen.head.size,
        "time_ns": seen.head.time_ns,
        "last_ns": seen.head.last_ns,
        "dropped": seen.head.dropped,
        "asked_ns": seen.asked_ns,
        "answered_ns": seen.answered_ns,
    }


def _say_verified(analysis: LogAnalysis, state: LogState | None) -> None:
    from veil.remote.log.findings import claimed_text, machine_text

    summary = analysis.summary
    say(f"verified: {summary.entries} entries with {summary.records} audit records, in order")
    if state is None or state.seen is None:
        return
    seen = state.seen
    quiet = seen.head.time_ns - seen.head.last_ns
    last = seen.head.last_ns
    ours = f", {claimed_text(seen.wall_ns(last) // 1_000_000)} by this computer's clock"
    say(
        f"the kernel called last at {machine_text(last)}{ours if last > analysis.resumed_ns else ''}, "
        f"{machine_text(quiet)} before the head was signed"
    )
    if seen.head.dropped:
        say(f"{seen.head.dropped} calls of the kernel found no room and are missing")


def _say_moment(number: int, first: Finding | None, told: int | None) -> None:
    from veil.remote.log.findings import claimed_text, machine_text

    if first is not None and number == first.distrusted_from and number != told:
        why = first.words
        when = f"{machine_text(first.time_ns)}; the kernel said {claimed_text(first.claimed_ms)}"
    else:
        why, when = "you say so", "--untrusted-from"
    say(f"from entry {number} ({when}) on, treat the kernel's words as untrusted: {why}")
    if number:
        say(f"entries 0 to {number - 1} were made before, and stay proven as they are")
