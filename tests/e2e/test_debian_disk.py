# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's ordinary firmware boots a disk as Debian's cloud images are, to a login; nothing there is Veil's.

`make soak` has it: the first run makes the disk, which takes minutes.
"""

from __future__ import annotations

import os
import re
import threading

import pytest
from sevsnpmeasure.guest import snp_calc_launch_digest
from sevsnpmeasure.vmm_types import VMMType

from tests.e2e.debian_disk import HOST_NAME, PASSWORD, debian_disk
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.packages import unpacked_package
from veil.snp.cpuid import PROCESSOR_SIGNATURE

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.geteuid() != 0, reason="the disk is made as root, whose files are in it"),
]

_TIMEOUT = 1800.0

#: What a terminal would not show (ECMA-48, 5.4), and the beginning of that at a text's end.
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_BEGUN_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*)?\Z")


class _Terminal:
    """The other end of the serial port: it answers when it has read what it waits for."""

    def __init__(self, vm: ConfidentialVM, dialogue: list[tuple[str, bytes]]) -> None:
        self._vm = vm
        self._dialogue = dialogue
        self._place = 0
        self._begun = ""
        self.text = ""

    def feed(self, data: bytes) -> None:
        text = self._begun + data.decode("utf-8", "replace")
        # The port gives a few bytes at a time: the rest of an escape sequence may be yet to come.
        begun = _BEGUN_SEQUENCE.search(text)
        self._begun = begun[0] if begun else ""
        self.text += _SEQUENCE.sub("", text.removesuffix(self._begun))
        if self._dialogue:
            wanted, answer = self._dialogue[0]
            found = self.text.find(wanted, self._place)
            if found >= 0:
                self._place = found + len(wanted)
                self._dialogue.pop(0)
                self._vm.type_in(answer)


def test_a_disk_boots_to_a_login_and_runs_commands() -> None:
    cache = Cache()
    firmware = unpacked_package(cache, "ovmf", suite="trixie") / "usr/share/ovmf/OVMF.fd"
    image = debian_disk(cache)
    made = image.stat().st_mtime_ns
    vm = ConfidentialVM("1G", monitor=False, firmware=firmware, kernel="none", disks=[f"{image},tmp"])
    terminal = _Terminal(
        vm,
        [
            (f"{HOST_NAME} login: ", b"root\n"),
            ("Password: ", PASSWORD.encode() + b"\n"),
            ("# ", b"findmnt -no SOURCE /; dmesg | grep Features; cat /proc/interrupts; cat /etc/hostname\n"),
            (f"\n{HOST_NAME}\n", b"echo writ''ten > /file; sync; cat /file\n"),
            ("\nwritten\n", b"systemctl --failed --no-pager; echo its'' end\n"),
            ("\nits end\n", b"systemctl poweroff\n"),
        ],
    )
    stopped = threading.Timer(_TIMEOUT, lambda: vm.hypervisor.stop())
    stopped.start()
    try:
        vm.run_until_off(terminal.feed)
        measured = vm.machine.secure_processor.measurement
    finally:
        stopped.cancel()
        vm.close()
    assert terminal._dialogue == [], terminal.text[-2000:]
    assert "/dev/vda2" in terminal.text
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in terminal.text
    assert re.search(r"^ *4: +[1-9][0-9]* +IO-APIC +4-edge +ttyS0$", terminal.text, re.MULTILINE)
    assert "0 loaded units listed" in terminal.text, "no service of the distribution's failed"
    # Nothing of the disk, nor of what it starts, is measured.
    assert measured == snp_calc_launch_digest(
        1, PROCESSOR_SIGNATURE, str(firmware), None, None, None, 1, "", VMMType.QEMU
    )
    assert image.stat().st_mtime_ns == made, "what the guest wrote lay over the image"
