# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code attacks the kernel's code: stopped under lock-down, in the log, and through without it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.kernel_text import RunningKernel, kernel_image
from tests.e2e.locked_guest import LockedGuest
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.kci_status import CodeEvent, CodeWord
from veil.guest.driver.build import build_module
from veil.guest.linux.kernel import debian_kernel
from veil.host import NestedPageFault
from veil.image.services_image import services_from_text
from veil.services.kci import KernelCode, physical_range

_SOURCES = Path(__file__).parent / "code_attacker"
_EFAULT = -14


@pytest.fixture(scope="module")
def attacker() -> bytes:
    sources = {name: (_SOURCES / name).read_bytes() for name in ("attacker.c", "Kbuild")}
    return build_module(Cache(), debian_kernel(Cache()), "attacker", sources)


@pytest.fixture(scope="module")
def code() -> KernelCode:
    return KernelCode(kernel_image())


class Guest(LockedGuest):
    """With the attacker in it, which the policy of its launch allows."""

    def attack(self, how: str, target: int = 0, steps: str = "") -> list[int] | None:
        """Each step's result; None if the kernel ended the attacker."""
        said = len(self._said())
        options = f"how={how} target={target:#x} steps={steps}"
        self.vm.run(["sh", "-c", f"insmod /root/attacker.ko {options} && rmmod attacker"], timeout=60)
        lines = self._said()[said:]
        assert lines, "the attacker did not run"
        results = [int(line.split()[-1], 0) for line in lines[1:]]
        return results or None

    def _said(self) -> list[str]:
        return re.findall(r"attacker: .*", self.vm.run(["dmesg"], timeout=60).stdout.decode())

    def violations(self) -> list[CodeWord]:
        """As the log has them."""
        return [word for word in self.words() if word.event == CodeEvent.VIOLATION]

    def text(self, address: int, size: int) -> bytes:
        """The kernel's memory, as VMPL 0 sees it."""
        return RunningKernel(self.vm).read(address, size)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory, attacker: bytes) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("snapshots")

    def make(mode: str) -> Path:
        path = folder / mode
        if not path.exists():
            module = folder / "attacker.ko"
            module.write_bytes(attacker)
            settings = f"kci:mode={mode},hashes={hashlib.sha256(attacker).hexdigest()}"
            with ConfidentialVM(services=services_from_text([settings]), fresh=True) as vm:
                vm.copy_in(module, "/root/attacker.ko")
                vm.snapshot(path)
        return path

    return make


@pytest.fixture
def resume(snapshots: Callable[[str], Path]) -> Iterator[Callable[[str], Guest]]:
    made: list[Guest] = []

    def make(mode: str = "on") -> Guest:
        made.append(Guest(ConfidentialVM.restore(snapshots(mode))))
        return made[-1]

    yield make
    for guest in made:
        guest.vm.close()


#: text, read-only data and the IDT, each by what attackers want of it; nothing of it is executed or used by the tests
PLACES = ("__x64_sys_swapoff", "sys_call_table", "__start___ex_table", "idt_table")
WAYS = ("direct", "alias", "tables", "wp")


def test_writes_are_stopped_whatever_the_way(resume: Callable[[str], Guest], code: KernelCode) -> None:
    guest = resume("on")
    count = 0
    for place in PLACES:
        target = code.image.symbols[place] + 16
        before = guest.text(target, 8)
        for way in WAYS if place == PLACES[0] else ("wp", "alias"):
            assert guest.attack(way, target, "0:6666666666666666") == [_EFAULT], (place, way)
            assert guest.text(target, 8) == before
            count += 1
            word = guest.violations()[-1]
            assert word.detail["symbol"].startswith(f"{place}+"), (place, way)
    assert guest.status().violations == count
    assert guest.vm.run(["sh", "-c", "echo works | wc -c"], timeout=30).stdout == b"6\n"


def test_a_modules_text(resume: Callable[[str], Guest]) -> None:
    guest = resume("on")
    target = RunningKernel(guest.vm).module_functions("veil")[0]
    before = guest.text(target, 8)
    assert guest.attack("wp", target, "0:6666666666666666") == [_EFAULT]
    assert guest.text(target, 8) == before
    word = guest.violations()[-1]
    assert (word.detail["address"], word.detail["owner"]) == (target, "MODULE_CODE")
    off = resume("off")
    target = RunningKernel(off.vm).module_functions("veil")[0]
    assert off.attack("wp", target, f"0:{off.text(target, 8).hex()}") == [0]


def test_data_is_not_protected(resume: Callable[[str], Guest], code: KernelCode) -> None:
    """The program that the kernel starts to have modules loaded is another one from here on."""
    guest = resume("on")
    target = code.image.symbols["modprobe_path"]
    assert guest.attack("alias", target, f"0:{b'/tmp/intruder'.hex()}00") == [0]
    assert guest.vm.run(["cat", "/proc/sys/kernel/modprobe"], timeout=30).stdout == b"/tmp/intruder\n"
    assert guest.status().violations == 0


def test_off_writes_get_through(resume: Callable[[str], Guest], code: KernelCode) -> None:
    guest = resume("off")
    target = code.image.symbols[PLACES[0]] + 16
    for number, way in enumerate(WAYS, 0x61):
        assert guest.attack(way, target, f"0:{bytes([number] * 8).hex()}") == [0], way
        assert guest.text(target, 8) == bytes([number] * 8), way


@pytest.mark.parametrize("how", ["data", "user"])
def test_other_memory_is_not_executed(resume: Callable[[str], Guest], how: str) -> None:
    guest = resume("on")
    assert guest.attack(how) is None
    assert "execution of what is not verified code" in guest.violations()[-1].words
    assert guest.vm.run(["true"], timeout=30).exit_status == 0
    assert resume("off").attack(how) == [0x666]


def test_forged_patches(resume: Callable[[str], Guest], code: KernelCode) -> None:
    guest = resume("on")
    live = code.live
    numbers = {
        kind: [n for n in range(len(live)) if live.site(n).kind == kind] for kind in ("jump label", "static call")
    }
    jump = next(live.site(n) for n in numbers["jump label"] if live.site(n).length == 5)
    before = guest.text(jump.address, 5)
    listed = guest.attack("alias", jump.address, f"0:cc,1:{before[1:].hex()},0:{before[:1].hex()}")
    assert listed == [0, 0, 0], "what Linux does itself"
    for steps, results in (
        ("0:e966666666", [_EFAULT]),  # all at once
        (f"1:{before[1:].hex()[::-1]}", [_EFAULT]),  # no INT3 yet
        (f"0:cc,1:66666666,0:{before[:1].hex()}", [0, _EFAULT, 0]),  # no target of a jump label
        (f"0:cc,0:e9,0:{before[:1].hex()}", [0, _EFAULT, 0]),  # a content that is not one
        (f"0:cc,1:{before[1:].hex()}90,0:{before[:1].hex()}", [0, _EFAULT, 0]),  # beyond the site
    ):
        assert guest.attack("alias", jump.address, steps) == results, steps
        assert guest.text(jump.address, 5) == before
    unlisted = code.image.symbols["__x64_sys_swapoff"] + 16
    assert live.find(unlisted) is None
    assert guest.attack("alias", unlisted, "0:cc") == [_EFAULT]
    # A store over the end of a page, of which both pages are code.
    end = (unlisted | 0xFFF) - 1
    assert guest.attack("alias", end, "0:90909090") == [_EFAULT]
    assert guest.status().violations == 7


def test_halt(resume: Callable[[str], Guest], code: KernelCode) -> None:
    guest = resume("halt")
    target = code.image.symbols[PLACES[0]] + 16
    before = guest.text(target, 1)
    with pytest.raises(NestedPageFault, match="VMPL 3 has no permission"):
        guest.attack("wp", target, "0:66")
    assert guest.text(target, 1) == before


def test_a_host_that_does_not_hand_refusals_on(resume: Callable[[str], Guest], code: KernelCode) -> None:
    guest = resume("on")
    guest.vm.hypervisor.hands_on_refusals = False
    target = code.image.symbols[PLACES[0]] + 16
    before = guest.text(target, 1)
    with pytest.raises(NestedPageFault) as caught:
        guest.attack("wp", target, "0:66")
    assert caught.value.gpa == physical_range(code.image, code.range).start + target - code.range.start
    assert guest.text(target, 1) == before
