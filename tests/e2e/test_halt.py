# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI's mode "halt": the kernel ends, on all VCPUs and whatever the host runs; its users still read why."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.e2e.kernel_text import kernel_image
from tests.e2e.locked_guest import LockedGuest, services
from tests.e2e.module_watcher import REFUSE_MODULES
from tests.e2e.snapshots import Resume
from tests.e2e.test_kci_driver import services as watched
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.cvm.assembly import Assembly
from veil.formats.kci_settings import HALT, ON, KciSettings
from veil.formats.kci_status import CodeEvent
from veil.guest.driver.build import build_module
from veil.guest.linux.kernel import debian_kernel
from veil.host import GuestPowerOff, NestedPageFault
from veil.image.services_image import protected_services
from veil.snp import Permission

_SOURCES = Path(__file__).parent / "code_attacker"


def _executable(vm: ConfidentialVM) -> int:
    """Pages that VMPL 3 can execute as a supervisor."""
    permissions = vm.machine.rmp.effective()["perms"][:, 3]
    return int((permissions & int(Permission.SX) != 0).sum())


def _ends(vm: ConfidentialVM, command: list[str]) -> None:
    """The kernel does while it runs this; VeilMon and the services run on, as under `veil serve`."""
    vm.hypervisor.kernel_end.is_outlived = True
    told: list[BaseException] = []
    vm.hypervisor.kernel_end.on_end = told.append
    vm.run(["sh", "-c", f"(sleep 0.1; {' '.join(command)}) </dev/null >/dev/null 2>&1 &"], timeout=60)
    vm.hypervisor.run(until=lambda: bool(told), timeout=60)
    assert isinstance(told[0], NestedPageFault)


@pytest.mark.parametrize("mode", [HALT, ON])
def test_a_violation(resume: Resume, tmp_path: Path, mode: str) -> None:
    sources = {name: (_SOURCES / name).read_bytes() for name in ("attacker.c", "Kbuild")}
    attacker = build_module(Cache(), debian_kernel(Cache()), "attacker", sources)
    policy = KciSettings(mode=mode, hashes=(hashlib.sha256(attacker).hexdigest(),))
    guest = LockedGuest(resume(vcpus=2, services=protected_services(policy)))
    (tmp_path / "attacker.ko").write_bytes(attacker)
    guest.vm.copy_in(tmp_path / "attacker.ko", "/root/attacker.ko")
    target = kernel_image().symbols["sys_call_table"]
    attack = ["insmod", "/root/attacker.ko", "how=alias", f"target={target:#x}", "steps=0:66"]
    if mode == HALT:
        _ends(guest.vm, attack)
        # No other VCPU executes the kernel either, though a host might run it.
        assert _executable(guest.vm) == 0
    else:
        guest.vm.run(attack, timeout=60)
        assert _executable(guest.vm) > 4000
    assert guest.status().violations == 1
    assert "sys_call_table" in guest.words()[-1].words


def test_a_lock_down_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assembly, "_driver", lambda self, kernel: None)
    monkeypatch.setattr(Assembly, "_lock_down_file", lambda self: {})
    with ConfidentialVM(services=services(HALT), fresh=True) as vm:
        guest = LockedGuest(vm)
        view = vm.machine.view(vmpl=3)
        view.write_u8(0x1123456, view.read_u8(0x1123456) ^ 1)
        vm.hypervisor.kernel_end.is_outlived = True
        with pytest.raises(Exception, match="not locked down: 1 bytes"):
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
