# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of commands that talk to a CVM's VeilS-LOG, and the way there: it is attested first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from veil.cli.connection import connected, connection_options
from veil.cli.option_types import options

if TYPE_CHECKING:
    from veil.remote.attestation.evidence import Attested
    from veil.remote.log.reader import LogReader, LogState


__all__ = ["log_options", "log_reader"]

log_options = options(
    connection_options,
    click.option("--to", "folder", default="veil-log", show_default=True, metavar="DIR", help="Where entries go."),
)


@contextlib.contextmanager
def log_reader(
    known: LogState | None, *, on_attested: Callable[[Attested], None] = lambda _: None, **connection: Any
) -> Iterator[LogReader]:
    """The log of an attested CVM; `connection` as of `connected`."""
    from veil.remote.log.connect import open_log

    with connected(**connection) as (client, believed):
        yield open_log(client, believed, known=known, on_attested=on_attested)
