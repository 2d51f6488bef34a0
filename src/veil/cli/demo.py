# SPDX-License-Identifier: GPL-2.0-or-later
"""veil demo: what `make run` shows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from veil.cli.common import Progress

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM

__all__ = ["demo"]

_SCRIPT = """
echo '$ uname -a'; uname -a
echo "\\$ dmesg | grep -E 'Memory Encryption|SNP running'"
dmesg | grep -E 'Memory Encryption|SNP running'
echo "\\$ grep -o -w svsm /proc/cpuinfo"; grep -o -w svsm /proc/cpuinfo
"""


@click.command()
def demo() -> int:
    """Boot the stock kernel under VeilMon, let it say where it runs, and attest it as a remote user would."""
    from veil.cvm import ConfidentialVM

    with ConfidentialVM(progress=Progress()) as vm:
        click.echo(f"launch digest {vm.machine.secure_processor.measurement.hex()}")
        result = vm.run(
            ["/bin/sh", "-c", _SCRIPT], stdout=lambda data: _write(1, data), stderr=lambda data: _write(2, data)
        )
        if result.exit_status == 0:
            _attest(vm)
    return result.exit_status


def _attest(vm: ConfidentialVM) -> None:
    """As `veil attest --software` does, in short: raises VerificationFailed if anything does not hold."""
    from veil import installation
    from veil.remote import ChannelClient, Policy, TrustedRoots, attest

    click.echo("$ veil attest --software")
    roots = TrustedRoots.amd().with_software_root(installation.software_root())
    expected = vm.build_image().log()
    with ChannelClient(vm.user_transport()) as client:
        outcome = attest(client, policy=Policy(), roots=roots, expected=expected)
    outcome.raise_for_failure()
    for name in ("freshness", "channel key", "report signature", "measurement", "VMPL"):
        words = next(check.words for check in outcome.checks if check.name == name)
        click.echo(f"ok    {name:<16}  {words}")
    click.echo(f"verified ({len(outcome.checks)} checks); machine: {outcome.machine}")


def _write(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
