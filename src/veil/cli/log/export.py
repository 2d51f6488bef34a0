# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs export, and the options by which `veil logs follow` exports too."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veil.cli.checks import failures_are_1
from veil.cli.option_types import options
from veil.cli.output import emit_json, say, tell
from veil.errors import VeilError
from veil.formats.printable import printable

if TYPE_CHECKING:
    from veil.remote.log.export import Sink
    from veil.remote.log.folder import LogFolder

__all__ = ["export", "export_options", "export_or_say", "open_sinks"]

#: Where entries are exported to.
export_options = options(
    click.option("--directory", metavar="DIR", help="Export JSON lines to a directory, in files of about 64 MB."),
    click.option("--otlp", metavar="URL", help="Export to a collector: http://HOST:PORT (OTLP; the extra otlp)."),
)


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(f"veil: {printable(record.getMessage())}")


@contextlib.contextmanager
def open_sinks(place: LogFolder, directory: str | None, otlp: str | None) -> Iterator[list[Sink]]:
    """What the options say, for oneself. Raises VeilError."""
    from veil.remote.log.export import DirectorySink

    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        if directory is not None:
            sink = DirectorySink(Path(directory))
            stack.enter_context(sink.lock())
            sinks.append(sink)
        if otlp is not None:
            try:
                from veil.remote.log.otlp import OtlpSink
            except ImportError as error:
                raise VeilError("--otlp needs the extra otlp: pip install 'veil[otlp]'") from error
            # What its libraries have to say goes through our output too, for it may quote the collector.
            logging.getLogger().addHandler(_Said(logging.WARNING))
            collector = OtlpSink(place, otlp)
            stack.callback(collector.close)
            stack.enter_context(collector.lock())
            sinks.append(collector)
        yield sinks


@click.command()
@click.option("--to", "folder", default="veil-log", show_default=True, metavar="DIR", help="The folder with the log.")
@export_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@failures_are_1
def export(folder: str, directory: str | None, otlp: str | None, as_json: bool) -> int:
    """Give the folder's entries to other systems, each at least once; the next time, only new ones.

    They are verified before. With --directory each entry is a line of JSON; with --otlp each audit record is a log
    record with the kernel's time. "log" (veil.log) and "sequence" (veil.log.sequence, with veil.log.record) are the
    same whenever an entry is sent again.
    """
    from veil.remote.log import export as exports
    from veil.remote.log.folder import LogFolder

    if directory is None and otlp is None:
        raise VeilError("where to? give --directory or --otlp")
    place = LogFolder(Path(folder))
    counts = []
    with open_sinks(place, directory, otlp) as sinks:
        place.verify()
        for sink in sinks:
            counts.append(exports.export(place, sink))
    done = dict(zip((name for name in (directory, otlp) if name is not None), counts, strict=True))
    if as_json:
        emit_json({"exported": done})
    else:
        for name, count in done.items():
            say(f"{count} entries exported to {name}")
    return 0


def export_or_say(place: LogFolder, sinks: Sequence[Sink], said: str = "") -> str:
    """Export what is new; who cannot take it is told of once (`said`) and asked again the next time."""
    from veil.remote.errors import RemoteError
    from veil.remote.log import export as exports

    failures = []
    for sink in sinks:
        try:
            exports.export(place, sink)
        except RemoteError as error:
            failures.append(str(error))
    words = "; ".join(failures)
    if words and not said:
        tell(f"veil: {words}; it is tried again")
    return words
