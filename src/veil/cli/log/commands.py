# SPDX-License-Identifier: GPL-2.0-or-later
"""veil logs"""

from __future__ import annotations

import click

from veil.cli.log.ack import ack
from veil.cli.log.export import export
from veil.cli.log.fetch import fetch
from veil.cli.log.follow import follow
from veil.cli.log.rules import rules
from veil.cli.log.verify import verify

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


for _command in (fetch, verify, follow, export, rules, ack):
    logs.add_command(_command)
