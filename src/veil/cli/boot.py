# SPDX-License-Identifier: GPL-2.0-or-later
"""veil boot"""

from __future__ import annotations

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.output import Console, emit_json, say, tell
from veil.cli.progress import Progress

__all__ = ["boot"]

_LOUD = ("loglevel=7",)
_OTHER_DIGEST = (
    "this digest is not that of `veil measure`: --console gives the kernel another command line (loglevel=7 instead of "
    "quiet loglevel=4), which is measured"
)


@click.command()
@cvm_options(initrd=True)
@click.option("--console", is_flag=True, help="Show the guest's console while it boots.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with times and counts.")
def boot(cvm: CvmOptions, console: bool, as_json: bool) -> None:
    """Boot a confidential VM from scratch, then stop: for watching and timing the boot.

    The kernel's command line is measured, and --console makes it another one: so is the launch digest. With --append it
    is as you wrote it.

    With --initrd there is nobody in the guest to say that it is up: its console is shown until it switches off, or
    Ctrl-C.

    \b
      veil boot --console
      veil boot --no-monitor --firmware debian --console
      veil boot --no-monitor --firmware OVMF.fd --kernel bzImage --initrd initrd.img --append console=ttyS0
    """
    from veil.cvm import QUIET, ConfidentialVM
    from veil.snp import COUNTER_NAMES

    console = console or cvm.initrd is not None
    shown = Console(tell if as_json else say)
    configuration = cvm.configuration(kernel_options=_LOUD if console else QUIET)
    vm = ConfidentialVM(configuration, progress=Progress(quiet=as_json))
    try:
        try:
            if cvm.initrd is not None:
                vm.run_until_off(shown.feed)
            else:
                vm.boot(shown.feed if console else None)
        finally:
            shown.close()
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
            lasted = "ran for" if cvm.initrd is not None else "up in"
            say(f"{lasted} {vm.boot_seconds:.1f} s; launch digest {digest}")
            if console and cvm.append is None:
                say(_OTHER_DIGEST)
    finally:
        vm.close()
