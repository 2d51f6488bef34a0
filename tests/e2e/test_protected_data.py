# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code writes data that nobody may write any more: tables of modules, the page that all processes share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.kernel_text import RunningKernel, kernel_image
from tests.e2e.log_guest import trust_in
from tests.e2e.snapshots import Resume
from veil import installation
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.kci_settings import OFF, ON, KciSettings
from veil.formats.kci_status import KciStatus
from veil.guest.driver.build import build_module
from veil.guest.linux.kernel import debian_kernel
from veil.image.services_image import protected_services
from veil.remote import ChannelClient
from veil.remote.kci.status import read_status

_SOURCES = Path(__file__).parent / "code_attacker"
_EFAULT = -14
#: A module of the distribution's that has all three kinds of tables: read-only, of exceptions, read-only after init.
_MODULE = "vhost"
_SECTIONS = (".rodata", "__ex_table", "__jump_table")
#: Where the page of zeros is read by few.
_SELDOM = 4080


@pytest.fixture(scope="module")
def attacker() -> bytes:
    sources = {name: (_SOURCES / name).read_bytes() for name in ("attacker.c", "Kbuild")}
    return build_module(Cache(), debian_kernel(Cache()), "attacker", sources)


class Guest:
    """Whose policy allows the attacker."""

    def __init__(self, vm: ConfidentialVM, attacker: bytes, folder: Path) -> None:
        self.vm = vm
        self.memory = RunningKernel(vm)
        self._folder = folder
        self._put("attacker", attacker)

    def _put(self, name: str, data: bytes) -> None:
        (self._folder / name).write_bytes(data)
        self.vm.copy_in(self._folder / name, f"/root/{name}.ko")

    def sh(self, script: str) -> str:
        """What it says."""
        done = self.vm.run(["sh", "-c", script], timeout=120)
        assert done.exit_status == 0, done.stderr
        return done.stdout.decode()

    def insert(self, name: str) -> None:
        """With what it needs."""
        for needed, data in self.vm.kernel_modules([name]):
            self._put(needed, data)
            self.sh(f"insmod /root/{needed}.ko")

    def section(self, name: str) -> int:
        """Where a section of the module is."""
        return int(self.sh(f"cat /sys/module/{_MODULE}/sections/{name}"), 16)

    def write(self, target: int) -> int:
        """The attacker's result of a write there, through a mapping of its own that is writable."""
        before = self.memory.read(target, 8)
        changed = bytes(byte ^ 0x55 for byte in before)
        self.sh(f"dmesg -c >/dev/null; insmod /root/attacker.ko how=alias target={target:#x} steps=0:{changed.hex()}")
        # Before anything uses what was written.
        wrong = self.memory.read(target, 8) != before
        self.vm.machine.view(vmpl=0).write(self.memory.translate(target), before)
        (result,) = re.findall(r"attacker: alias (\S+)", self.sh("rmmod attacker; dmesg"))
        assert wrong == (result == "0")
        return int(result)

    def status(self) -> KciStatus:
        """What VeilS-KCI says."""
        with ChannelClient(self.vm.user_transport(timeout=60), identity=installation.user_key()) as client:
            return read_status(client, trust_in(self.vm))


@pytest.fixture
def start(resume: Resume, attacker: bytes, tmp_path: Path) -> Callable[[str], Guest]:
    def make(mode: str) -> Guest:
        policy = KciSettings(mode=mode, hashes=(hashlib.sha256(attacker).hexdigest(),))
        return Guest(resume(services=protected_services(policy)), attacker, tmp_path)

    return make


def test_tables_of_modules(start: Callable[[str], Guest]) -> None:
    guest = start(ON)
    guest.insert(_MODULE)
    for count, name in enumerate(_SECTIONS, 1):
        assert guest.write(guest.section(name)) == _EFAULT, name
        status = guest.status()
        assert status.violations == count
        assert "a write to KERNEL_RODATA" in status.words[-1]
    # Those of the driver, which was there before lock-down.
    driver = int(guest.sh("cat /sys/module/veil/sections/.rodata"), 16)
    assert guest.write(driver) == _EFAULT
    # Its variables are its own; and all of it goes with the module.
    assert guest.write(guest.section(".data")) == 0
    place = guest.memory.translate(guest.section(".rodata"))
    guest.sh(f"rmmod {_MODULE}")
    guest.vm.machine.view(vmpl=3).write(place, bytes(8))


def test_the_page_of_zeros(start: Callable[[str], Guest]) -> None:
    guest = start(ON)
    target = kernel_image().symbols["empty_zero_page"] + _SELDOM
    assert guest.write(target) == _EFAULT
    assert guest.memory.read(target, 8) == bytes(8)
    assert "empty_zero_page" in guest.status().words[-1]


def test_off_all_of_it_is_written(start: Callable[[str], Guest]) -> None:
    guest = start(OFF)
    guest.insert(_MODULE)
    for name in _SECTIONS:
        assert guest.write(guest.section(name)) == 0, name
    assert guest.write(kernel_image().symbols["empty_zero_page"] + _SELDOM) == 0
