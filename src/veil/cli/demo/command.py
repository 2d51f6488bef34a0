# SPDX-License-Identifier: GPL-2.0-or-later
"""veil demo: what `make run` shows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veil.cli.demo.code import show_code
from veil.cli.demo.guest import in_guest
from veil.cli.demo.log import show_log
from veil.cli.output import say
from veil.cli.progress import Progress

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
    """Boot the stock kernel under VeilMon and attest it; keep an intruder out; then let them in, and read the log.

    The intruder is a kernel module of ours: it wipes the kernel's own audit queues and log, forges a record, and
    switches audit off behind the kernel's back. With --kci on VeilS-KCI refuses it, and loads a module of Debian's.
    With --kci off it gets in, and what it hides is in VeilS-LOG.
    """
    from veil.formats.kci_settings import OFF, ON

    with tempfile.TemporaryDirectory(prefix="veil-demo-") as directory:
        place = Path(directory)
        # Before the boot: the guest runs in this thread, and stands still while something else does.
        guarded = _cvm(ON)
        intruder, expected = guarded.build_intruder(), guarded.build_image().log()
        with guarded:
            say(f"launch digest {guarded.machine.secure_processor.measurement.hex()}")
            in_guest(guarded, _SCRIPT)
            show_code(guarded, expected, intruder, place)
        open_ = _cvm(OFF)
        expected = open_.build_image().log()
        with open_:
            show_log(open_, expected, intruder, place)
    return 0


def _cvm(mode: str) -> ConfidentialVM:
    from veil.cvm import ConfidentialVM
    from veil.formats.kci_settings import KciSettings
    from veil.image.services_image import protected_services

    return ConfidentialVM(services=protected_services(KciSettings(mode=mode)), progress=Progress())
