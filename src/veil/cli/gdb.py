# SPDX-License-Identifier: GPL-2.0-or-later
"""veil gdb"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.output import Console, say
from veil.cli.progress import Progress
from veil.cli.tool_options import debugging

__all__ = ["gdb"]


@click.command()
@cvm_options(initrd=True, igvm=True)
@click.option("--listen", metavar="PORT|SOCKET", help="Where gdb comes to.  [default: a socket of this user's alone]")
def gdb(cvm: CvmOptions, listen: str | None) -> None:
    """Boot a confidential VM for gdb: it stands still before its first instruction, until gdb has it go on.

    \b
      veil gdb --listen 1234 &
      gdb -ex "target remote :1234"
      veil gdb --igvm monitor.igvm

    Threads are the contexts of each VCPU and VMPL. `monitor help` in gdb tells what else there is. The guest's console
    is shown until the guest switches off, or Ctrl-C. `--gdb` of run, boot and serve does the same with a CVM that they
    run.
    """
    from veil.cvm import ConfidentialVM

    with tempfile.TemporaryDirectory(prefix="veil-gdb-") as folder:
        shown = Console(say)
        with debugging(f"{listen or Path(folder) / 'socket'},wait") as tool:
            vm = ConfidentialVM(cvm.configuration(), progress=Progress(), tools=[tool])
            try:
                vm.run_until_off(shown.feed)
            finally:
                shown.close()
                vm.close()
