# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs rules: audit rules for the guest's kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from veil.cli.checks import failures_are_1
from veil.cli.files import read_file
from veil.cli.log.connection import log_options, log_reader
from veil.cli.option_types import SECONDS
from veil.cli.output import say

__all__ = ["rules"]


@click.command()
@failures_are_1
@log_options
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
    with log_reader(LogFolder(Path(folder)).known(), needs="--owner", **connection) as reader:
        load_rules(reader, text, seconds=seconds)
    say("the kernel says that it has loaded the rules")
    return 0
