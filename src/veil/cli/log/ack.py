# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs ack: the CVM may forget what was fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from veil.cli.checks import failures_are_1
from veil.cli.log.connection import log_options, log_reader
from veil.cli.output import say
from veil.errors import VeilError

__all__ = ["ack"]


@click.command()
@failures_are_1
@log_options
def ack(folder: str, **connection: Any) -> int:
    """Let the CVM forget the entries in the folder, which makes room for new ones. Owners of the CVM only."""
    from veil.remote.log.folder import LogFolder

    place = LogFolder(Path(folder))
    if place.known() is None:
        raise VeilError(f"there is no log in {folder}: fetch it first")
    with place.lock():
        # What is on the disk, and not what once was, may be forgotten.
        place.verify()
        with log_reader(place.known(), needs="--owner", **connection) as reader:
            reader.head()
            count = reader.acknowledge()
    say(f"the CVM may forget its first {count} entries")
    return 0
