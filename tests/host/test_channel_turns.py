# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever users of the channel send, the guest runs longer than VeilMon does for them: by a clock of the tests'."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.host.fakes import GHCB, VMSA, Guest, Step
from veil.formats.ghcb import MsrRequest
from veil.host import GuestHung, RunResult
from veil.host.channel_turns import ACTIONS, KERNEL_SHARE
from veil.host.service_pulse import PULSE_NS
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmcb

KERNEL_VMSA, OTHER_VMSA, OTHER_MONITOR = 0x2000, 0x3000, 0x4000
RUN_KERNEL = 3 << 32 | 0x016
MS = 1_000_000


class Served(Guest):
    """A guest at VMPL 3, VeilMon at VMPL 0, and time that passes in steps of scripts only."""

    def __init__(self, vcpus: int = 1) -> None:
        self.now = 0
        super().__init__(vcpus, monitor=True, clock=lambda: self.now)
        self.host.vcpus[0].set_vmsa(3, KERNEL_VMSA).ghcb = GHCB
        self.host.vcpus[0].start(3)
        self.ran: list[tuple[str, int]] = []
        #: what VeilMon takes each time, and whether it leaves something lying
        self.monitor_ns, self.more = 2 * MS, True
        self.machine.scripts[VMSA] = _Endless(self.monitor)  # type: ignore[assignment]

    def monitor(self, vmcb: Vmcb) -> None:
        self.ran.append(("VeilMon", self.now))
        self.now += self.monitor_ns
        if self.more:
            self.platform.channel.pending = True
        vmcb.ghcb_gpa = RUN_KERNEL

    def busy(self, ns: int = MS // 10) -> Step:
        """A piece of a program that never waits; the host's deadline ends it."""

        def step(vmcb: Vmcb) -> int:
            self.ran.append(("guest", self.now))
            self.now = max(self.now, min(self.now + ns, self.machine.deadlines[-1]))
            return ExitCode.INTR

        return step

    def time_of(self, who: str) -> int:
        """How long it had the machine."""
        ends = [at for _, at in self.ran[1:]] + [self.now]
        return sum(end - at for (name, at), end in zip(self.ran, ends, strict=True) if name == who)


class _Endless:
    """A script that is never over."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Step:
        return self._step


def run(guest: Served, ns: int) -> None:
    end = guest.now + ns
    assert guest.host.run(lambda: guest.now >= end) == RunResult.DONE


def test_a_busy_guest_keeps_more_than_half() -> None:
    guest = Served()
    guest.machine.scripts[KERNEL_VMSA] = _Endless(guest.busy())  # type: ignore[assignment]
    guest.platform.channel.pending = True
    run(guest, 1000 * MS)
    share = guest.time_of("guest") / guest.now
    assert 0.59 < share < 0.62
    # And VeilMon is kept waiting no longer than that.
    assert guest.platform.channel.entries >= 1000 / 2 / (1 + KERNEL_SHARE) - 1


def test_however_long_a_turn_takes() -> None:
    guest = Served()
    guest.machine.scripts[KERNEL_VMSA] = _Endless(guest.busy(MS))  # type: ignore[assignment]
    guest.platform.channel.pending = True
    for guest.monitor_ns in (MS // 100, MS, 20 * MS, 200 * MS):
        guest.ran.clear()
        begin = guest.now
        run(guest, max(100 * guest.monitor_ns, 100 * MS))
        assert guest.time_of("VeilMon") < (guest.now - begin) / 2


def test_a_guest_that_sleeps_is_not_waited_for() -> None:
    guest = Served()  # its script is empty: it halts
    guest.platform.channel.pending = True
    run(guest, 1000 * MS)
    assert guest.platform.channel.entries >= 500


def test_a_kernel_that_halted_for_good_has_users_all_the_same() -> None:
    """Also at the moment at which the services would be run: they have nothing to do, and the users' turn comes."""

    def halt(vmcb: Vmcb) -> int:
        guest.now += MS
        vmcb.interrupt_shadow = 0
        return ExitCode.HLT

    guest = Served()
    guest.host.pulse.due_ns = PULSE_NS
    guest.machine.scripts[KERNEL_VMSA] = _Endless(halt)  # type: ignore[assignment]
    guest.platform.channel.pending = True
    run(guest, 2 * PULSE_NS)
    assert guest.platform.channel.entries >= PULSE_NS // (2 * MS)
    # When the last one is served, the kernel's end is told.
    guest.more = False
    with pytest.raises(GuestHung):
        run(guest, 2 * PULSE_NS)


def test_several_vcpus() -> None:
    """The one on which VeilMon works is not the only one that waits for it."""
    guest = Served(2)
    guest.host.vcpus[1].set_vmsa(3, OTHER_VMSA)
    guest.host.vcpus[1].start(3)
    for vmsa in (KERNEL_VMSA, OTHER_VMSA):
        guest.machine.scripts[vmsa] = _Endless(guest.busy())  # type: ignore[assignment]
    guest.platform.channel.pending = True
    run(guest, 1000 * MS)
    assert guest.time_of("VeilMon") < guest.now * 0.42
    assert {KERNEL_VMSA, OTHER_VMSA} <= set(guest.machine.ran)


def test_what_another_vcpu_has_begun_is_not_waited_for_in_vain() -> None:
    """VeilMon works for a user, and waits for what it is in the middle of on another VCPU: the services decide there
    about a store of the kernel's, say."""
    guest = Served(2)
    guest.host.vcpus[1].set_vmsa(3, OTHER_VMSA)
    guest.host.vcpus[1].set_vmsa(0, OTHER_MONITOR)
    guest.host.vcpus[1].start(0)
    done: list[int] = []

    def give_way(vmcb: Vmcb) -> None:
        guest.now += MS // 10
        vmcb.ghcb_gpa = RUN_KERNEL if done else int(MsrRequest.HV_FEATURES)

    def work(vmcb: Vmcb) -> None:
        done.append(guest.now)
        vmcb.ghcb_gpa = RUN_KERNEL

    guest.machine.scripts[VMSA] = _Endless(give_way)  # type: ignore[assignment]
    guest.machine.scripts[OTHER_MONITOR] = _Endless(work)  # type: ignore[assignment]
    for vmsa in (KERNEL_VMSA, OTHER_VMSA):
        guest.machine.scripts[vmsa] = _Endless(guest.busy())  # type: ignore[assignment]
    guest.platform.channel.pending = True
    run(guest, 20 * MS)
    assert len(done) == 1
    assert done[0] <= 2 * MS
    assert {KERNEL_VMSA, OTHER_VMSA} <= set(guest.machine.ran), "all goes on"


def test_what_the_listener_does_is_part_of_it() -> None:
    """Its actions run in turns, a bounded number in each, and take from the same share."""
    guest = Served()
    guest.more = False
    guest.machine.scripts[KERNEL_VMSA] = _Endless(guest.busy())  # type: ignore[assignment]
    done: list[int] = []

    def act() -> None:
        done.append(guest.now)
        guest.now += MS // 10

    for _ in range(1000):
        guest.host.post_for_channel(act)
    run(guest, 100 * MS)
    assert 0 < len(done) < 500, "less than half of the time"
    turns = sorted(set(_turns(done)))
    assert max(turns) <= ACTIONS
    run(guest, 1000 * MS)
    assert len(done) == 1000, "none is lost"


@pytest.mark.parametrize("listener_ns", [MS // 10, MS, 5 * MS])
def test_the_guest_has_back_what_the_listener_needs(listener_ns: int) -> None:
    """On a computer of one core, say: the listener works between VeilMon and guest."""
    guest = Served()
    guest.machine.scripts[KERNEL_VMSA] = _Endless(guest.busy())  # type: ignore[assignment]
    monitor = guest.monitor

    def and_listener(vmcb: Vmcb) -> None:
        monitor(vmcb)
        guest.ran.append(("listener", guest.now))
        guest.now += listener_ns
        guest.host.listener_worked(listener_ns)

    guest.machine.scripts[VMSA] = _Endless(and_listener)  # type: ignore[assignment]
    guest.platform.channel.pending = True
    run(guest, 2000 * MS)
    assert guest.time_of("listener") > 0
    assert guest.time_of("guest") / guest.now > 0.59


def test_a_listener_that_slept_with_its_computer_does_not_stop_users() -> None:
    guest = Served()
    guest.machine.scripts[KERNEL_VMSA] = _Endless(guest.busy())  # type: ignore[assignment]
    guest.platform.channel.pending = True
    guest.host.listener_worked(3600 * 1000 * MS)
    run(guest, 1000 * MS)
    assert guest.platform.channel.entries > 10


def _turns(times: list[int]) -> list[int]:
    """How many actions followed one another without a pause."""
    counts = [1]
    for before, after in itertools.pairwise(times):
        if after - before > MS // 10:
            counts.append(0)
        counts[-1] += 1
    return counts


def test_a_flood_interrupts_the_guest_once_a_turn() -> None:
    guest = Served()
    guest.more = False
    guest.machine.scripts[KERNEL_VMSA] = _Endless(guest.busy())  # type: ignore[assignment]
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    for _ in range(500):
        guest.host.post_for_channel(nothing)
    assert guest.machine.kicks == 1
    run(guest, MS)
    for _ in range(500):
        guest.host.post_for_channel(nothing)
    assert guest.machine.kicks == 2


def test_input_of_others_does_not_wait() -> None:
    guest = Served()
    guest.machine.scripts[KERNEL_VMSA] = _Endless(guest.busy())  # type: ignore[assignment]
    guest.platform.channel.pending = True
    run(guest, 10 * MS)
    done: list[int] = []
    at = guest.now
    guest.host.post(lambda: done.append(guest.now))
    run(guest, MS)
    assert done == [at]
