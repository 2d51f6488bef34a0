# SPDX-License-Identifier: GPL-2.0-or-later
"""Whichever way the kernel ends: a host that serves users runs VMPL 0 and 1 on, and never VMPL 3 again."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.host.fakes import GHCB, VMSA, Guest, Step
from veil.host import (
    GuestHung,
    GuestPanic,
    GuestPowerOff,
    GuestReset,
    GuestTerminated,
    HostError,
    MalformedGhcb,
    NestedPageFault,
    RunResult,
    TripleFault,
    UnexpectedExit,
    VmrunRefused,
)
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmcb

MONITOR, KERNEL, SERVICES = VMSA, 0x2000, 0x3000
KERNEL_1, MONITOR_1 = 0x6000, 0x7000
RUN_KERNEL, RUN_SERVICES, HOLD, TERMINATE = 3 << 32 | 0x016, 1 << 32 | 0x016, 0x006, 0x100
SECOND = 1_000_000_000


class Monitored(Guest):
    """VeilMon, services and a kernel. VeilMon and the services have the kernel run, and hold if that is refused."""

    def __init__(self, vcpus: int = 1) -> None:
        self.now = 0
        super().__init__(vcpus, monitor=True, clock=self.clock)
        self.host._wakeup = _Clockwork(self)
        self.ended: list[HostError] = []
        self.host.kernel_end.on_end = self.ended.append
        self.host.kernel_end.is_outlived = True
        levels = [(0, MONITOR), (1, SERVICES), (3, KERNEL)]
        for vcpu in self.host.vcpus:
            for vmpl, vmsa in levels:
                vcpu.set_vmsa(vmpl, vmsa).ghcb = GHCB
            vcpu.start(3)
            levels = [(0, MONITOR_1), (3, KERNEL_1)]

    def clock(self) -> int:
        self.now += 1000
        return self.now

    def serve_a_user(self, vmsa: int = MONITOR) -> list[int]:
        """Something is on the channel: what ran for it."""
        ran = self.machine.ran
        ran.clear()
        self.machine.script(vmsa, ask(RUN_KERNEL), ask(HOLD))
        self.platform.channel.pending = True
        assert self.host.run(lambda: not self.machine.scripts[vmsa], timeout=30) == RunResult.DONE
        return list(ran)


class _Clockwork(threading.Event):
    """A host that sleeps lets the tests' time pass."""

    def __init__(self, guest: Monitored) -> None:
        super().__init__()
        self._guest = guest

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None, "nothing would ever wake the host"
        self._guest.now += int(timeout * SECOND)
        return False


def ask(value: int) -> Step:
    def step(vmcb: Vmcb) -> None:
        vmcb.ghcb_gpa = value

    return step


def leave(code: int) -> Callable[[Monitored], None]:
    return lambda guest: guest.machine.script(KERNEL, lambda vmcb: code)


def halts_for_good(guest: Monitored) -> None:
    def step(vmcb: Vmcb) -> int:
        vmcb.interrupt_shadow = 0
        return ExitCode.HLT

    guest.machine.script(KERNEL, step)


def destroys_itself(guest: Monitored) -> None:
    def step(vmcb: Vmcb) -> ExitCode:
        guest.host.vcpus[0].drop_vmsa(3)
        return ExitCode.INTR

    guest.machine.script(KERNEL, step)


def device(name: str) -> Callable[[Monitored], None]:
    def order(guest: Monitored) -> None:
        def step(vmcb: Vmcb) -> ExitCode:
            getattr(guest.platform, name)()
            return ExitCode.INTR

        guest.machine.script(KERNEL, step)

    return order


def panics(guest: Monitored) -> None:
    def step(vmcb: Vmcb) -> ExitCode:
        guest.host.stop(GuestPanic("the guest's kernel panicked"))
        return ExitCode.INTR

    guest.machine.script(KERNEL, step)


ENDS: dict[str, tuple[Callable[[Monitored], None], type[HostError]]] = {
    "termination": (lambda guest: guest.machine.script(KERNEL, ask(TERMINATE)), GuestTerminated),
    "no GHCB": (lambda guest: guest.machine.script(KERNEL, ask(1 << 40)), MalformedGhcb),
    "private GHCB": (lambda guest: guest.machine.script(KERNEL, ask(0x9000)), MalformedGhcb),
    "triple fault": (leave(ExitCode.SHUTDOWN), TripleFault),
    "nested page fault": (leave(ExitCode.NPF), NestedPageFault),
    "a VMSA that cannot run": (leave(ExitCode.INVALID), VmrunRefused),
    "an exit of no kind": (leave(0x999), UnexpectedExit),
    "halted for good": (halts_for_good, GuestHung),
    "AP reset hold": (lambda guest: guest.machine.script(KERNEL, ask(HOLD)), GuestHung),
    "no VMSA any more": (destroys_itself, GuestHung),
    "power off": (device("on_power_off"), GuestPowerOff),
    "reset": (device("on_reset"), GuestReset),
    "panic": (panics, GuestPanic),
}


@pytest.mark.parametrize("name", ENDS)
def test_users_are_served_after_it(name: str) -> None:
    guest = Monitored()
    end, kind = ENDS[name]
    end(guest)
    assert guest.host.run(lambda: bool(guest.ended), timeout=30) == RunResult.DONE
    assert [type(error) for error in guest.ended] == [kind]
    assert guest.host.kernel_end.error is guest.ended[0]
    for _ in range(3):
        assert guest.serve_a_user() == [MONITOR, MONITOR]
    assert len(guest.ended) == 1


@pytest.mark.parametrize("name", ENDS)
def test_the_machine_ends_with_its_kernel(name: str) -> None:
    """The switch is off."""
    guest = Monitored()
    guest.host.kernel_end.is_outlived = False
    end, kind = ENDS[name]
    end(guest)
    with pytest.raises(kind):
        guest.host.run(timeout=30)
    assert not guest.ended


@pytest.mark.parametrize("vmsa", [MONITOR, SERVICES])
@pytest.mark.parametrize("end", [lambda vmcb: ExitCode.SHUTDOWN, lambda vmcb: ExitCode.NPF, ask(TERMINATE)])
def test_other_levels_end_the_machine(vmsa: int, end: Step) -> None:
    guest = Monitored()
    guest.host.vcpus[0].start(0 if vmsa == MONITOR else 1)
    guest.machine.script(vmsa, end)
    with pytest.raises(HostError):
        guest.host.run(timeout=30)
    assert not guest.ended


def test_without_a_monitor_there_is_nothing_to_run_on() -> None:
    guest = Guest()
    guest.host.kernel_end.is_outlived = True
    guest.machine.script(VMSA, lambda vmcb: ExitCode.SHUTDOWN)
    with pytest.raises(TripleFault):
        guest.host.run(timeout=30)


def test_no_vcpu_runs_the_kernel_any_more() -> None:
    """A context of the kernel on another VCPU goes, too, even one with an interrupt to take."""
    guest = Monitored(2)
    guest.machine.script(KERNEL, lambda vmcb: ExitCode.SHUTDOWN)
    guest.host.run(lambda: bool(guest.ended), timeout=30)
    guest.machine.ran.clear()
    guest.platform.vectors = {0: [0x30], 1: [0x30]}
    assert guest.host.run(timeout=0.01) == RunResult.TIMEOUT
    assert guest.machine.ran == []
    assert guest.serve_a_user() == [MONITOR, MONITOR]


def test_what_another_level_was_at_is_finished() -> None:
    guest = Monitored(2)
    guest.host.vcpus[1].start(0)
    work: list[str] = []

    def step(vmcb: Vmcb) -> ExitCode:
        work.append("a piece")
        return ExitCode.INTR

    guest.machine.script(KERNEL, lambda vmcb: ExitCode.SHUTDOWN)
    guest.machine.script(MONITOR_1, *[step] * 5, ask(RUN_KERNEL), ask(HOLD))
    guest.host.run(lambda: not guest.machine.scripts[MONITOR_1], timeout=30)
    assert len(guest.ended) == 1
    assert len(work) == 5


def test_the_services_are_run_on() -> None:
    """They write the silence into the log."""
    guest = Monitored()
    services, monitor = guest.host.vcpus[0].contexts[1], guest.host.vcpus[0].contexts[0]
    guest.machine.script(KERNEL, ask(RUN_SERVICES), lambda vmcb: ExitCode.SHUTDOWN)
    guest.machine.script(SERVICES, ask(RUN_KERNEL))
    guest.host.run(lambda: bool(guest.ended), timeout=30)
    for _ in range(3):
        guest.machine.ran.clear()
        guest.machine.script(SERVICES, ask(RUN_KERNEL), ask(HOLD))
        guest.host.run(lambda: not guest.machine.scripts[SERVICES], timeout=30)
        assert guest.machine.ran == [services.vmcb.vmsa_pa] * 2
        assert guest.serve_a_user() == [monitor.vmcb.vmsa_pa] * 2
