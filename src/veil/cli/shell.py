# SPDX-License-Identifier: GPL-2.0-or-later
"""veil shell"""

from __future__ import annotations

import click

from veil.cli.common import Progress, cvm_options

__all__ = ["shell"]


@click.command()
@cvm_options
@click.option("--fresh", is_flag=True, help="Boot anew: neither use nor keep a snapshot.")
def shell(memory: str, vcpus: int, kernel: str | None, no_monitor: bool, fresh: bool) -> int:
    """An interactive shell in a confidential VM. What you change in it is gone when you leave."""
    from veil.cvm import ConfidentialVM

    with ConfidentialVM(
        memory, vcpus, kernel=kernel, monitor=not no_monitor, fresh=fresh, progress=Progress()
    ) as vm:
        return vm.shell()
