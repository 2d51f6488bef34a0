# SPDX-License-Identifier: GPL-2.0-or-later
"""veil boot"""

from __future__ import annotations

import os

import click

from veil.cli.common import Progress, cvm_options, emit_json

__all__ = ["boot"]


@click.command()
@cvm_options
@click.option("--console", is_flag=True, help="Show the guest's console while it boots.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with times and counts.")
def boot(memory: str, vcpus: int, kernel: str | None, no_monitor: bool, console: bool, as_json: bool) -> None:
    """Boot a confidential VM from scratch, then stop: for watching and timing the boot."""
    from veil.cvm import ConfidentialVM
    from veil.snp import COUNTER_NAMES

    def show(data: bytes) -> None:
        os.write(2 if as_json else 1, data)

    vm = ConfidentialVM(
        memory,
        vcpus,
        kernel=kernel,
        monitor=not no_monitor,
        progress=Progress(quiet=as_json),
        kernel_options=("loglevel=7",) if console else ("quiet", "loglevel=4"),
    )
    try:
        vm.boot(show if console else None)
        digest = vm.machine.secure_processor.measurement.hex()
        if as_json:
            counters = vm.machine.counters
            emit_json(
                {
                    "seconds": round(vm.boot_seconds or 0, 3),
                    "launch_digest": digest,
                    "exits": vm.hypervisor.counters(),
                    "core": {name: getattr(counters, name) for name in COUNTER_NAMES},
                }
            )
        else:
            click.echo(f"up in {vm.boot_seconds:.1f} s; launch digest {digest}")
    finally:
        vm.close()
