# SPDX-License-Identifier: GPL-2.0-or-later
"""The group of commands."""

from __future__ import annotations

import click

from veil.cli.enc.build import build
from veil.cli.enc.inspect import inspect
from veil.cli.enc.remote import attest, provision

__all__ = ["enclave"]


@click.group()
def enclave() -> None:
    """Programs that run shielded from the guest's kernel, at VMPL 2.

    \b
      veil enclave build sqlite3 --package sqlite3 --set arguments.outside=true -o sqlite3.enclave
      veil enclave inspect sqlite3.enclave
      veil run --enclave sqlite3.enclave -- :memory: 'select 6*7'
      veil enclave attest sqlite3.enclave --connect HOST:PORT ...
    """


for _command in (build, inspect, attest, provision):
    enclave.add_command(_command)
