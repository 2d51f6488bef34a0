# SPDX-License-Identifier: GPL-2.0-or-later
"""veil demo: what `make run` shows."""

from __future__ import annotations

import os

import click

from veil.cli.common import Progress

__all__ = ["demo"]

_SCRIPT = """
echo '$ uname -a'; uname -a
echo "\\$ dmesg | grep -E 'Memory Encryption|SNP running'"
dmesg | grep -E 'Memory Encryption|SNP running'
echo "\\$ grep -o -w svsm /proc/cpuinfo"; grep -o -w svsm /proc/cpuinfo
"""


@click.command()
def demo() -> int:
    """Boot the stock kernel under VeilMon and let it say where it runs."""
    from veil.cvm import ConfidentialVM

    with ConfidentialVM(progress=Progress()) as vm:
        click.echo(f"launch digest {vm.machine.secure_processor.measurement.hex()}")
        result = vm.run(
            ["/bin/sh", "-c", _SCRIPT], stdout=lambda data: _write(1, data), stderr=lambda data: _write(2, data)
        )
    return result.exit_status


def _write(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
