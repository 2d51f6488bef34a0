# SPDX-License-Identifier: GPL-2.0-or-later
"""veil shell"""

from __future__ import annotations

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.output import raw
from veil.cli.progress import Progress
from veil.cli.run import piped_stdin

__all__ = ["shell"]

_SHELL = ("/bin/sh", "-l")


@click.command()
@cvm_options()
@click.option("--fresh", is_flag=True, help="Boot without a snapshot: neither use nor keep one.")
def shell(cvm: CvmOptions, fresh: bool) -> int:
    """An interactive shell in a confidential VM. What you change in it is gone when you leave.

    Keys typed while it starts are kept for it. If stdin is not a terminal, the shell runs the commands that come from
    there, and ends with them.

    \b
      veil shell
      echo 'uname -a; exit 3' | veil shell

    Exit status: the shell's.
    """
    from veil.cvm import ConfidentialVM
    from veil.cvm.terminal import is_terminal, type_ahead

    with (
        type_ahead(),
        ConfidentialVM(cvm.configuration(), fresh=fresh, progress=Progress()) as vm,
    ):
        if is_terminal():
            return vm.shell(_SHELL, output=lambda data: raw(1, data))
        return vm.run(
            _SHELL, stdin=piped_stdin(), stdout=lambda data: raw(1, data), stderr=lambda data: raw(2, data)
        ).exit_status
