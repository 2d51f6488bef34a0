# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that lies about accesses that the RMP refused: made up, told again, told wrongly, never told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.code_attacks.guests import EFAULT, CodeGuest, Resume
from tests.e2e.code_attacks.test_patches import idle_site, legal_steps
from veil.host import NestedPageFault, VmrunRefused
from veil.host.hypervisor import Hypervisor
from veil.monitor import veilmon
from veil.services.kci import KernelCode, physical_range

_EVERY = 50


def _report_all_the_time(patch: pytest.MonkeyPatch, guest: CodeGuest) -> list[int]:
    """The host has VeilMon decide, after every so many exits, what did not happen or was decided already: to run VMPL 0
    on the VCPU is all that it can say. How often it did."""
    host, run = guest.vm.hypervisor, Hypervisor.run
    exits = [0, 0]

    def lie() -> None:
        exits[0] += 1
        for vcpu in host.vcpus:
            if not exits[0] % _EVERY and host.kernel_end.may_enter(vcpu, 0):
                exits[1] += 1
                vcpu.start(0)

    def lying(self: Hypervisor, until: Callable[[], bool] | None = None, timeout: float | None = None) -> Any:
        def asked() -> bool:
            if until is not None and until():
                return True
            lie()
            return False

        return run(self, asked, timeout)

    patch.setattr(Hypervisor, "run", lying)
    return exits


def test_reports_of_what_did_not_happen(locked: CodeGuest, code: KernelCode, monkeypatch: pytest.MonkeyPatch) -> None:
    known = locked.status()
    site = idle_site(code, "jump label")
    with monkeypatch.context() as patch:
        _, lies = exits = _report_all_the_time(patch, locked)
        assert locked.store("alias", site.address, legal_steps(locked.text(site.address, 5))) == [0, 0, 0]
        assert locked.sh("for i in 1 2 3; do echo works | wc -c; done") == (0, "6\n6\n6\n")
        assert exits[1] > lies
    status = locked.status()
    assert status.violations == known.violations
    assert sum(status.patches["jump label"].values()) == sum(known.patches.get("jump label", {}).values()) + 3


def test_counter_test_a_monitor_that_believes_reports(
    resume: Resume, code: KernelCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then an innocent instruction after a patch counts as another store."""
    guest = resume()
    site = idle_site(code, "jump label")
    assert guest.store("alias", site.address, legal_steps(guest.text(site.address, 5))) == [0, 0, 0]
    assert guest.status().violations == 0
    monkeypatch.setattr(veilmon, "is_refusal", lambda state, host, vcpu: vcpu.kernel.vmsa is not None)
    _report_all_the_time(monkeypatch, guest)
    try:
        guest.vm.run(["true"], timeout=60)
    except VmrunRefused:
        # VeilMon has stopped the VCPU for it.
        return
    assert guest.status().violations > 0


def test_a_report_of_something_else(locked: CodeGuest, code: KernelCode) -> None:
    """The host changes what the VMCB says: VeilMon reads the VMSA."""
    host, target = locked.vm.hypervisor, code.image.symbols["__x64_sys_swapoff"] + 16
    site = idle_site(code, "jump label")
    lied = []

    def lie(index: int, vmpl: int, gpa: int, info: int) -> bool:
        lied.append(gpa)
        host.vcpus[index].contexts[vmpl].vmcb.exit_info_2 = physical_range(code.image, code.range).start + (
            site.address - code.range.start
        )
        return False

    host.on_npf = lie
    try:
        assert locked.store("wp", target, "0:cc") == [EFAULT]
    finally:
        host.on_npf = None
    assert lied
    assert locked.violations()[-1].detail["address"] == target


def test_none_is_ever_reported(resume: Resume, code: KernelCode) -> None:
    """A stop, and nothing is written."""
    guest, target = resume(), code.image.symbols["__x64_sys_swapoff"] + 16
    guest.vm.hypervisor.hands_on_refusals = lambda: False
    before = guest.text(target, 1)
    with pytest.raises(NestedPageFault) as caught:
        guest.store("wp", target, "0:66")
    assert caught.value.gpa == physical_range(code.image, code.range).start + target - code.range.start
    assert guest.text(target, 1) == before
