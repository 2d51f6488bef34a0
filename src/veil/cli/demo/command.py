# SPDX-License-Identifier: GPL-2.0-or-later
"""veil demo: what `make run` shows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veil.cli.demo.attack import show_attack
from veil.cli.demo.code import show_code
from veil.cli.demo.enclaves import build_enclaves, show_enclaves
from veil.cli.demo.guest import in_guest
from veil.cli.demo.log import show_log
from veil.cli.output import say
from veil.cli.progress import Progress

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.formats.service_settings import ServiceSettings

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
    Beside it Debian's busybox and sqlite3 run as enclaves. With --kci off the intruder gets in, and what it hides is in
    VeilS-LOG. The kernel is the intruder's then: a secret that the user sends to enclaves there it does not find, and
    touching the memory of any of them is the end of that kernel.
    """
    from veil.formats.enclave_settings import ON as ENCLAVES_ON
    from veil.formats.enclave_settings import EncSettings
    from veil.formats.kci_settings import OFF, ON, KciSettings

    with tempfile.TemporaryDirectory(prefix="veil-demo-") as directory:
        place = Path(directory)
        # Before the boot: the guest runs in this thread, and stands still while something else does.
        guarded = _cvm(KciSettings(mode=ON), EncSettings(mode=ENCLAVES_ON))
        intruder, expected, images = guarded.build_intruder(), guarded.build_image().log(), build_enclaves(place)
        with guarded:
            say(f"launch digest {guarded.machine.secure_processor.measurement.hex()}")
            in_guest(guarded, _SCRIPT)
            show_code(guarded, expected, intruder, place)
            show_enclaves(guarded, images)
        open_ = _cvm(KciSettings(mode=OFF), EncSettings(mode=ENCLAVES_ON))
        expected = open_.build_image().log()
        with open_:
            show_log(open_, expected, intruder, place)
            show_attack(open_, expected, images, place)
    return 0


def _cvm(*settings: ServiceSettings) -> ConfidentialVM:
    from veil.cvm import ConfidentialVM
    from veil.image.services_image import protected_services

    return ConfidentialVM(services=protected_services(*settings), progress=Progress())
