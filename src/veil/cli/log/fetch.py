# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs fetch: what is not in the folder yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from veil.cli.checks import failures_are_1
from veil.cli.log.connection import log_options, log_reader
from veil.cli.log.verify import count_findings, say_findings
from veil.cli.output import emit_json, say

__all__ = ["fetch"]


@click.command()
@failures_are_1
@log_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fetch(folder: str, as_json: bool, **connection: Any) -> int:
    """Fetch and verify the entries that are not in the folder yet.

    The folder gets audit.log, which ausearch and aureport read (-if), and entries.bin with every byte that was hashed.
    What looks wrong in the new entries is said; `veil logs verify` looks at all of them.
    """
    from veil.remote.log.analysis import LogAnalysis
    from veil.remote.log.folder import LogFolder

    place = LogFolder(Path(folder))
    with place.lock(), log_reader(place.known(), **connection) as reader:
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
