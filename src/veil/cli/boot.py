# SPDX-License-Identifier: GPL-2.0-or-later
"""veil boot"""

from __future__ import annotations

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.output import Console, emit_json, say, tell
from veil.cli.progress import Progress
from veil.cli.tool_options import ToolOptions, tool_options
from veil.cli.until_off import run_until_off

__all__ = ["boot"]

_LOUD = ("loglevel=7",)
_OTHER_DIGEST = (
    "this digest is not that of `veil measure`: --console gives the kernel another command line (loglevel=7 instead of "
    "quiet loglevel=4), which is measured"
)


@click.command()
@cvm_options(initrd=True, igvm=True)
@tool_options
@click.option("--console", is_flag=True, help="Show the guest's console while it boots.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with times and counts.")
def boot(cvm: CvmOptions, tools: ToolOptions, console: bool, as_json: bool) -> None:
    """Boot a confidential VM from scratch, then stop: for watching and timing the boot.

    The kernel's command line is measured, and --console makes it another one: so is the launch digest. With --append it
    is as you wrote it.

    With --initrd, --igvm or --kernel none there is nobody in the guest to say that it is up: its console is shown until
    it switches off, or Ctrl-C. Lines that you type go to its serial port.

    \b
      veil boot --console
      veil boot --no-monitor --firmware debian --console
      veil boot --no-monitor --firmware debian --kernel bzImage --initrd initrd.img --append console=ttyS0
      veil boot --no-monitor --firmware OVMF.fd --kernel none --disk debian.img,tmp --memory 1G
      veil boot --igvm svsm.igvm --memory 1G
    """
    from veil.cvm import QUIET, ConfidentialVM
    from veil.snp import COUNTER_NAMES

    shown = Console(tell if as_json else say)
    configuration = cvm.configuration(kernel_options=_LOUD if console else QUIET)
    console = console or not configuration.has_agent
    with tools.opened() as looking_on:
        vm = ConfidentialVM(configuration, progress=Progress(quiet=as_json), tools=looking_on)
        try:
            try:
                if not configuration.has_agent:
                    run_until_off(vm, shown)
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
                lasted = "up in" if configuration.has_agent else "ran for"
                say(f"{lasted} {vm.boot_seconds:.1f} s; launch digest {digest}")
                if console and configuration.has_agent and cvm.append is None:
                    say(_OTHER_DIGEST)
        finally:
            vm.close()
