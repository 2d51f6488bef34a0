# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI's mode "halt": the kernel ends, on all VCPUs and whatever the host runs; its users still read why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.code_attacks.guests import CodeGuest
from tests.e2e.locked_guest import LockedGuest
from tests.e2e.snapshots import halfway
from veil.cvm import ConfidentialVM
from veil.formats.kci_settings import HALT
from veil.formats.kci_status import CodeEvent
from veil.host import GuestPowerOff, NestedPageFault
from veil.image.services_image import PROTECTED_SERVICES
from veil.services.kci import KernelCode, KernelImage, measured_kernel
from veil.services.kci.module_calls import ModuleCalls
from veil.services.kci.modules import AdmittedFile, ModuleRefused
from veil.snp import Permission


def _executable(vm: ConfidentialVM) -> int:
    """Pages that VMPL 3 can execute as a supervisor."""
    permissions = vm.machine.rmp.effective()["perms"][:, 3]
    return int((permissions & int(Permission.SX) != 0).sum())


def test_a_violation(halting: CodeGuest, code: KernelCode) -> None:
    """VeilMon and the services run on, as under `veil serve`."""
    end = halting.vm.hypervisor.kernel_end
    end.is_outlived = True
    told: list[BaseException] = []
    end.on_end = told.append
    target = code.image.symbols["sys_call_table"]
    attack = f"(sleep 0.1; echo 0 store alias {target:#x} 0:66 >/dev/attacker) </dev/null >/dev/null 2>&1 &"
    halting.sh(attack)
    halting.vm.hypervisor.run(until=lambda: bool(told), timeout=60)
    assert isinstance(told[0], NestedPageFault)
    # No other VCPU executes the kernel either, though a host might run it.
    assert _executable(halting.vm) == 0
    assert halting.status().violations == 1
    assert "sys_call_table" in halting.words()[-1].words


def test_with_on_the_kernel_lives(locked: CodeGuest, code: KernelCode) -> None:
    locked.store("alias", code.image.symbols["sys_call_table"], "0:66")
    assert locked.status().violations > 0
    assert _executable(locked.vm) > 4000


@pytest.fixture
def booting(begun: Callable[[str], Path]) -> Iterator[ConfidentialVM]:
    """One that loads its driver."""
    with halfway(begun(HALT), PROTECTED_SERVICES) as vm:
        yield vm


def test_a_lock_down_that_is_refused(booting: ConfidentialVM) -> None:
    guest, view, end = LockedGuest(booting), booting.machine.view(vmpl=3), booting.hypervisor.kernel_end
    view.write_u8(0x1123456, view.read_u8(0x1123456) ^ 1)
    end.is_outlived = True
    booting.hypervisor.run(until=lambda: end.error is not None, timeout=60)
    assert end.error is not None
    assert _executable(booting) == 0
    assert guest.status().locked_ns is None
    (word,) = guest.words()
    assert word.event is CodeEvent.NOT_LOCKED
    assert "not locked down: 1 bytes" in word.words


def test_a_driver_that_is_refused(booting: ConfidentialVM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there to ask for lock-down: the measured init ends the boot."""
    refused: list[str] = []

    def refuse(calls: ModuleCalls) -> AdmittedFile:
        refused.append("it")
        raise ModuleRefused("as the test says")

    monkeypatch.setattr(ModuleCalls, "_admitted", refuse)
    with pytest.raises(GuestPowerOff):
        booting.connect()
    assert refused


def test_a_kernel_whose_symbols_cannot_be_read(booting: ConfidentialVM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver is refused for that, so the same: no program runs."""
    looked: list[int] = []
    monkeypatch.setattr("veil.services.kci.kernel_image.find_symbols", lambda data, base: looked.append(base))
    # Not the image that the other guests share: its symbols may have been read already.
    monkeypatch.setattr(measured_kernel, "KernelImage", KernelImage)
    with pytest.raises(GuestPowerOff):
        booting.connect()
    assert looked
