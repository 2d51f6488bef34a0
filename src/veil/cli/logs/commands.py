# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veil.cli.connection import connected, connection_options
from veil.cli.evidence import failures_are_1
from veil.cli.files import read_file
from veil.cli.logs.export import export, export_options, export_or_say, open_sinks
from veil.cli.logs.verify import count_findings, say_findings, verify
from veil.cli.option_types import SECONDS, SOME_SECONDS, options
from veil.cli.output import emit_json, say, say_all, tell
from veil.errors import VeilError
from veil.formats.printable import printable

if TYPE_CHECKING:
    from veil.formats.log import LogEntry
    from veil.remote.attestation.evidence import Attested
    from veil.remote.log.reader import LogReader, LogState

__all__ = ["logs"]


@click.group()
def logs() -> None:
    """Audit records that VeilS-LOG keeps where the guest's kernel cannot reach them.

    \b
      veil serve --listen 127.0.0.1:7700 &
      veil logs rules --connect 127.0.0.1:7700 --software --measurement DIGEST
      veil logs fetch --connect 127.0.0.1:7700 --software --measurement DIGEST --to evidence
      ausearch -if evidence/audit.log -m EXECVE
      veil logs verify --to evidence
      veil logs export --to evidence --directory lines
      veil logs ack --connect 127.0.0.1:7700 --software --measurement DIGEST --to evidence

    Each connection is attested first, as by `veil attest`. What was verified is remembered in the folder: a log that
    lost, changed or reordered entries since, or comes from an older state of the machine, is refused.
    """


logs.add_command(verify)
logs.add_command(export)


_connection_options = options(
    connection_options,
    click.option("--to", "folder", default="veil-log", show_default=True, metavar="DIR", help="Where entries go."),
)


@contextlib.contextmanager
def _reader(
    known: LogState | None, *, on_attested: Callable[[Attested], None] = lambda _: None, **connection: Any
) -> Iterator[LogReader]:
    """The log of an attested CVM; `connection` as of `connected`."""
    from veil.remote.log.connect import open_log

    with connected(**connection) as (client, believed):
        yield open_log(client, believed, known=known, on_attested=on_attested)


@logs.command()
@failures_are_1
@_connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fetch(folder: str, as_json: bool, **connection: Any) -> int:
    """Fetch and verify the entries that are not in the folder yet.

    The folder gets audit.log, which ausearch and aureport read (-if), and entries.bin with every byte that was hashed.
    What looks wrong in the new entries is said; `veil logs verify` looks at all of them.
    """
    from veil.remote.log.analysis import LogAnalysis
    from veil.remote.log.folder import LogFolder

    place = LogFolder(Path(folder))
    with place.lock(), _reader(place.known(), **connection) as reader:
        analysis = LogAnalysis(first=reader.state.tree.size)
        head = reader.head()
        entries = list(reader.fetch(head))
        count = place.add(entries, reader.state)
    for entry in entries:
        analysis.feed(entry)
    analysis.finish(head)
    if as_json:
        found = count_findings(analysis)
        emit_json({"new_entries": count, "entries": head.size, "dropped": head.dropped, "folder": folder, **found})
    else:
        say(f"{count} new entries verified, {head.size} in all; {folder}/audit.log")
        if head.dropped:
            say(f"{head.dropped} calls of the kernel found no room in the log")
        say_findings(analysis, only_trouble=True)
    return 0


@logs.command()
@failures_are_1
@_connection_options
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
        _reader(place.known(), on_attested=connected, **connection) as reader,
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


@logs.command()
@failures_are_1
@_connection_options
@click.option("--seconds", type=SECONDS, default=30.0, show_default=True, help="How long to wait for the kernel.")
@click.argument("file", required=False, metavar="[FILE]")
def rules(folder: str, seconds: float, file: str | None, **connection: Any) -> int:
    """Have the guest's kernel load audit rules; for owners of the CVM.

    FILE has lines for `auditctl -R`. Without it the default set is sent: programs that start, modules, privileges, who
    listens on the network, and writing to /bin, /etc, /lib, /sbin and /usr.

    That they were asked for stands in the log. Whether the kernel has them is the kernel's word; while it is not
    compromised, its CONFIG_CHANGE records say so too.
    """
    from veil.remote.log.audit_rules import default_rules, load_rules
    from veil.remote.log.folder import LogFolder

    text = read_file(file) if file is not None else default_rules()
    with _reader(LogFolder(Path(folder)).known(), needs="--owner", **connection) as reader:
        load_rules(reader, text, seconds=seconds)
    say("the kernel says that it has loaded the rules")
    return 0


@logs.command()
@failures_are_1
@_connection_options
def ack(folder: str, **connection: Any) -> int:
    """Let the CVM forget the entries in the folder, which makes room for new ones. Owners of the CVM only."""
    from veil.remote.log.folder import LogFolder

    place = LogFolder(Path(folder))
    if place.known() is None:
        raise VeilError(f"there is no log in {folder}: fetch it first")
    with place.lock():
        # What is on the disk, and not what once was, may be forgotten.
        place.verify()
        with _reader(place.known(), needs="--owner", **connection) as reader:
            reader.head()
            count = reader.acknowledge()
    say(f"the CVM may forget its first {count} entries")
    return 0
