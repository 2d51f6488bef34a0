# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI's mode "halt": the kernel ends, on all VCPUs and whatever the host runs; its users still read why."""

from __future__ import annotations

import pytest

from tests.e2e.code_attacks.guests import CodeGuest
from tests.e2e.locked_guest import LockedGuest, services
from tests.e2e.module_watcher import REFUSE_MODULES
from tests.e2e.test_kci_driver import services as watched
from veil.cvm import ConfidentialVM
from veil.cvm.assembly import Assembly
from veil.formats.kci_settings import HALT, KciSettings
from veil.formats.kci_status import CodeEvent
from veil.host import GuestPowerOff, NestedPageFault
from veil.image.services_image import services_from_text
from veil.remote import RequestFailed
from veil.services.kci import KernelCode, KernelImage, measured_kernel
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


def test_a_lock_down_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assembly, "_driver", lambda self, kernel: None)
    monkeypatch.setattr(Assembly, "_lock_down_file", lambda self: {})
    with ConfidentialVM(services=services(HALT), fresh=True) as vm:
        guest = LockedGuest(vm)
        view = vm.machine.view(vmpl=3)
        view.write_u8(0x1123456, view.read_u8(0x1123456) ^ 1)
        vm.hypervisor.kernel_end.is_outlived = True
        with pytest.raises(RequestFailed, match="not locked down: 1 bytes"):
            guest.lock_down()
        assert _executable(vm) == 0
        assert guest.status().locked_ns is None
        assert [word.event for word in guest.words()] == [CodeEvent.NOT_LOCKED]
        assert vm.hypervisor.kernel_end.error is not None


def test_a_driver_that_is_refused() -> None:
    """Nobody is there to ask for lock-down: the measured init ends the boot."""
    vm = ConfidentialVM(services=watched(KciSettings(HALT, hashes=(REFUSE_MODULES,))), fresh=True)
    with pytest.raises(GuestPowerOff), vm:
        pass


def test_a_kernel_whose_symbols_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver is refused for that, so the same: no program runs."""
    looked: list[int] = []
    monkeypatch.setattr("veil.services.kci.kernel_image.find_symbols", lambda data, base: looked.append(base))
    # Not the image that the other guests share: its symbols may have been read already.
    monkeypatch.setattr(measured_kernel, "KernelImage", KernelImage)
    vm = ConfidentialVM(services=services_from_text(["kci:mode=halt"]), fresh=True)
    with pytest.raises(GuestPowerOff), vm:
        pass
    assert looked
