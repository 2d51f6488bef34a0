# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs follow: entries as they come."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veil.cli.checks import failures_are_1
from veil.cli.log.connection import log_options, log_reader
from veil.cli.log.export import export_options, export_or_say, open_sinks
from veil.cli.log.verify import say_findings
from veil.cli.option_types import SECONDS, SOME_SECONDS
from veil.cli.output import emit_json, say_all, tell
from veil.formats.printable import printable

if TYPE_CHECKING:
    from veil.formats.log import LogEntry
    from veil.remote.attestation.evidence import Attested


__all__ = ["follow"]


@click.command()
@failures_are_1
@log_options
@click.option("--format", "form", type=click.Choice(["audit", "json"]), default="audit", show_default=True)
@click.option("--seconds", type=SECONDS, metavar="N", help="Stop after so long; by default at Ctrl-C.")
@click.option(
    "--interval",
    type=SOME_SECONDS,
    default=0.1,
    show_default=True,
    metavar="N",
    help="Seconds between two looks for new entries.",
)
@export_options
def follow(
    folder: str,
    form: str,
    seconds: float | None,
    interval: float,
    directory: str | None,
    otlp: str | None,
    **connection: Any,
) -> int:
    """Fetch, verify and print entries as they come, and export them (see `veil logs export`).

    It looks every tenth of a second (--interval). When an entry is printed it is verified and on the disk, out of the
    reach of the CVM's host, who could take away what is in the CVM alone. What looks wrong is said on stderr,
    and first to whom this is connected and from which entry on it follows.
    """
    from veil.remote.log.analysis import LogAnalysis
    from veil.remote.log.folder import LogFolder
    from veil.remote.log.follow import follow_log

    place = LogFolder(Path(folder))
    said, failed = 0, ""

    def connected(attested: Attested) -> None:
        known = place.known()
        first = known.tree.size if known is not None else 0
        tell(
            f"veil: connected to {connection['connect']}, verified ({len(attested.checks)} checks); machine: "
            f"{attested.machine}; entries from number {first} on come into {folder}"
        )

    end = None if seconds is None else time.monotonic() + seconds
    with (
        place.lock(),
        open_sinks(place, directory, otlp) as sinks,
        log_reader(place.known(), on_attested=connected, **connection) as reader,
    ):
        analysis = LogAnalysis(first=reader.state.tree.size)
        for head, entries in follow_log(reader, place, interval=interval):
            failed = export_or_say(place, sinks, failed)
            for entry in entries:
                analysis.feed(entry)
                _print(entry, form)
            analysis.silence(head.time_ns, head)
            said = say_findings(analysis, since=said)
            if end is not None and time.monotonic() >= end:
                break
    return 0


def _print(entry: LogEntry, form: str) -> None:
    from veil.remote.log.audit_lines import audit_lines
    from veil.remote.log.export import entry_value

    if form == "audit":
        say_all(printable(line[:-1], None) for line in audit_lines(entry))
    else:
        emit_json(entry_value(entry), as_line=True)
