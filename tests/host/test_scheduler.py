# SPDX-License-Identifier: GPL-2.0-or-later
"""Which VCPU runs next: in turn, or at once when something was just sent to it."""

from __future__ import annotations

from tests.host.fakes import Guest
from veil.host import RunState
from veil.host.scheduler import Scheduler

_INTERRUPTS_ON = 2


def host(vcpus: int = 3) -> tuple[Guest, Scheduler]:
    guest = Guest(vcpus)
    for vcpu in guest.host.vcpus:
        vcpu.set_vmsa(0, 0x2000 + vcpu.index * 0x1000)
        vcpu.start(0)
    return guest, Scheduler(guest.host)


def halt(guest: Guest, index: int, *, interrupts: bool = True) -> None:
    vcpu = guest.host.vcpus[index]
    assert vcpu.current is not None
    vcpu.state = RunState.HALTED
    vcpu.current.vmcb.interrupt_shadow = _INTERRUPTS_ON if interrupts else 0


def order(scheduler: Scheduler, count: int) -> list[int]:
    found = [scheduler.choose() for _ in range(count)]
    return [vcpu.index for vcpu in found if vcpu is not None]


def test_in_turn() -> None:
    _, scheduler = host()
    assert order(scheduler, 5) == [0, 1, 2, 0, 1]


def test_those_that_wait_are_left_out() -> None:
    guest, scheduler = host()
    halt(guest, 1)
    assert order(scheduler, 4) == [0, 2, 0, 2]
    assert not scheduler.can_run(guest.host.vcpus[1])
    guest.platform.vectors[1] = [0x30]
    assert order(scheduler, 3) == [0, 1, 2]


def test_who_is_preferred_runs_once_out_of_turn() -> None:
    guest, scheduler = host()
    scheduler.prefer(guest.host.vcpus[2])
    assert order(scheduler, 3) == [2, 0, 1]
    halt(guest, 2)
    scheduler.prefer(guest.host.vcpus[2])
    assert order(scheduler, 2) == [0, 1]


def test_who_is_signalled_is_preferred() -> None:
    guest, scheduler = host()
    halt(guest, 2)
    assert not scheduler.signalled(guest.host.vcpus[0])
    guest.platform.vectors[2] = [0xFD]
    assert scheduler.signalled(guest.host.vcpus[0])
    assert order(scheduler, 1) == [2]
    # Its own interrupt is no reason for a VCPU to stop.
    assert not scheduler.signalled(guest.host.vcpus[2])


def test_idle_and_hung() -> None:
    guest, scheduler = host(2)
    assert not scheduler.idle
    halt(guest, 0)
    assert scheduler.can_another_run(guest.host.vcpus[0])
    assert not scheduler.can_another_run(guest.host.vcpus[1])
    halt(guest, 1, interrupts=False)
    assert scheduler.idle
    assert not scheduler.hung
    assert scheduler.choose() is None
    halt(guest, 0, interrupts=False)
    assert scheduler.hung
    guest.platform.vectors[0] = [0x30]
    assert scheduler.hung
