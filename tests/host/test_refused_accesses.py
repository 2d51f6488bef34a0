# SPDX-License-Identifier: GPL-2.0-or-later
"""Nested page faults of the kernel that an honest host hands on to VeilMon, and those that it does not."""

from __future__ import annotations

import pytest

from tests.host.fakes import VMSA, Guest, Step
from veil.formats.ghcb import run_vmpl_request
from veil.host import NestedPageFault, RunResult
from veil.host.errors import VmrunRefused
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmcb

KERNEL = 0x2000
NO_RIGHT = 1 << 36 | 1 << 34 | 1 << 31


def leave(code: ExitCode, info_1: int = 0, info_2: int = 0) -> Step:
    def step(vmcb: Vmcb) -> ExitCode:
        vmcb.exit_info_1, vmcb.exit_info_2 = info_1, info_2
        return code

    return step


def run_kernel(vmcb: Vmcb) -> None:
    vmcb.ghcb_gpa = run_vmpl_request(3)


@pytest.fixture
def guest() -> Guest:
    """Its kernel is about to run; VeilMon has it run each time."""
    guest = Guest(monitor=True)
    vcpu = guest.host.vcpus[0]
    vcpu.set_vmsa(3, KERNEL)
    vcpu.start(3)
    guest.host.hands_on_refusals = lambda: True
    guest.machine.script(VMSA, *[run_kernel] * 10)
    return guest


def run(guest: Guest, *steps: Step) -> list[int]:
    """The kernel's exits; returns the VMSAs that ran."""
    guest.machine.script(KERNEL, *steps)
    guest.machine.ran.clear()
    halted = len(steps) + 1
    done = guest.host.run(until=lambda: guest.machine.ran.count(KERNEL) == halted, timeout=5)
    assert done == RunResult.DONE
    return guest.machine.ran


def test_handed_on(guest: Guest) -> None:
    assert run(guest, leave(ExitCode.NPF, NO_RIGHT, 0x9008)) == [KERNEL, VMSA, KERNEL]


def test_one_that_veilmon_refuses_ends_the_guest_as_before(guest: Guest) -> None:
    with pytest.raises(NestedPageFault, match=r"0x9008.*VMPL 3 has no permission") as caught:
        run(guest, leave(ExitCode.NPF, NO_RIGHT, 0x9008), leave(ExitCode.INVALID))
    assert (caught.value.gpa, caught.value.info, caught.value.vmpl) == (0x9008, NO_RIGHT, 3)


def test_what_was_decided_is_over(guest: Guest) -> None:
    """VMRUN fails later, for another reason, and is not explained by an access long ago."""
    run(guest, leave(ExitCode.NPF, NO_RIGHT, 0x9008))
    guest.machine.scripts[KERNEL].clear()
    guest.host.vcpus[0].start(0)
    with pytest.raises(VmrunRefused):
        run(guest, leave(ExitCode.INVALID))


@pytest.mark.parametrize("decided", [False, True], ids=["before VeilMon decides", "after it"])
def test_a_snapshot_in_between(guest: Guest, decided: bool) -> None:
    """Why VMRUN refuses the kernel's VMSA is known after it, too."""
    guest.machine.script(KERNEL, leave(ExitCode.NPF, NO_RIGHT, 0x9008))
    kernel = guest.host.vcpus[0].contexts[3]
    guest.host.run(until=lambda: (kernel.refused if decided else kernel.handed_on) is not None, timeout=5)
    restored = Guest(monitor=True)
    restored.host.hands_on_refusals = lambda: True
    restored.host.load(guest.host.dump())
    restored.machine.script(VMSA, run_kernel)
    restored.machine.script(KERNEL, leave(ExitCode.INVALID))
    with pytest.raises(NestedPageFault, match=r"0x9008.*VMPL 3 has no permission"):
        restored.host.run(timeout=5)


@pytest.mark.parametrize(
    "info", [1 << 31 | 1 << 34, 1 << 31, 4], ids=["the host took the page", "shared access", "outside"]
)
def test_what_is_the_hosts_to_explain(guest: Guest, info: int) -> None:
    with pytest.raises(NestedPageFault):
        run(guest, leave(ExitCode.NPF, info, 0x9008))
    assert guest.machine.ran == [KERNEL]


def test_without_services_that_decide(guest: Guest) -> None:
    guest.host.hands_on_refusals = lambda: False
    with pytest.raises(NestedPageFault):
        run(guest, leave(ExitCode.NPF, NO_RIGHT, 0x9008))
    assert guest.machine.ran == [KERNEL]


def test_faults_of_other_levels(guest: Guest) -> None:
    """VeilMon cannot decide what itself, or the services, are refused."""
    guest.machine.scripts[VMSA].clear()
    guest.machine.script(VMSA, leave(ExitCode.NPF, NO_RIGHT, 0x9008))
    guest.host.vcpus[0].start(0)
    with pytest.raises(NestedPageFault) as caught:
        run(guest)
    assert caught.value.vmpl == 0
