# SPDX-License-Identifier: GPL-2.0-or-later
"""The run loop: turns, interrupts, sleep and how guests end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.host.fakes import GHCB, PAGE, V_IRQ, VMSA, FakeMachine, FakePlatform, Guest, Step
from veil.host import (
    Event,
    ExitEvent,
    GhcbEvent,
    GhcbMsrEvent,
    GuestHung,
    GuestPanic,
    GuestReset,
    HostError,
    Hypervisor,
    NestedPageFault,
    PageStateEvent,
    RunResult,
    RunState,
    TripleFault,
    UnexpectedExit,
    VmplSwitchEvent,
    VmrunRefused,
)
from veil.host.vcpu import exception_event
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import V_NMI, V_NMI_ENABLE, V_NMI_MASK, Vmcb

VMSA_1 = 0x2000


def leave(code: int, info1: int = 0, info2: int = 0, *, interrupts: bool = True, event: int = 0) -> Step:
    """A step that exits with this code."""

    def step(vmcb: Vmcb) -> int:
        vmcb.exit_info_1, vmcb.exit_info_2, vmcb.exit_int_info = info1, info2, event
        vmcb.interrupt_shadow = 2 if interrupts else 0
        return code

    return step


def msr(value: int) -> Step:
    def step(vmcb: Vmcb) -> None:
        vmcb.ghcb_gpa = value

    return step


def take_interrupt(taken: list[int], then: int = ExitCode.INTR) -> Step:
    """A step in which the CPU takes the offered interrupt."""

    def step(vmcb: Vmcb) -> int:
        assert vmcb.v_intr & V_IRQ
        taken.append(vmcb.v_intr >> 32 & 0xFF)
        vmcb.v_intr &= ~V_IRQ
        return then

    return step


def sees(seen: list[int], then: int = ExitCode.INTR) -> Step:
    def step(vmcb: Vmcb) -> int:
        seen.append(vmcb.v_intr >> 32 & 0xFF if vmcb.v_intr & V_IRQ else -1)
        return then

    return step


def run_script(guest: Guest, *steps: Step, vmsa: int = VMSA) -> RunResult:
    guest.machine.script(vmsa, *steps)
    return guest.host.run(lambda: not guest.machine.scripts[vmsa], timeout=5)


def two_vcpus() -> Guest:
    guest = Guest(2)
    guest.host.vcpus[1].set_vmsa(0, VMSA_1)
    guest.host.vcpus[1].start(0)
    return guest


class TestInterrupts:
    def test_a_vector_below_cr8_wakes_nobody(self) -> None:
        guest = Guest()
        vcpu = guest.host.vcpus[0]
        vcpu.state, vcpu.contexts[0].vmcb.interrupt_shadow = RunState.HALTED, 2
        guest.platform.vectors[0] = [0x40]
        for cr8 in range(16):
            guest.platform.write_cr8(0, cr8)
            assert guest.platform.read_cr8(0) == vcpu.contexts[0].vmcb.v_intr & 0xFF == cr8
            assert guest.host.idle == (cr8 >= 4)

    def test_cr8_is_the_cpus_to_compare(self) -> None:
        guest = Guest()
        guest.platform.vectors[0] = [0x4A]
        seen: list[int] = []

        def step(vmcb: Vmcb) -> int:
            seen.append(vmcb.v_intr >> 16 & 0x1F)
            return int(ExitCode.INTR)

        run_script(guest, step)
        assert seen == [4]

    def test_taken_and_acknowledged(self) -> None:
        guest = Guest()
        guest.platform.vectors[0] = [0xEC, 0x30]
        taken: list[int] = []
        run_script(guest, take_interrupt(taken), take_interrupt(taken))
        assert taken == [0xEC, 0x30]
        assert guest.platform.log == [("ack", 0), ("ack", 0)]

    def test_stays_offered_until_taken(self) -> None:
        guest = Guest()
        guest.platform.vectors[0] = [0x31]
        seen: list[int] = []
        run_script(guest, sees(seen), sees(seen))
        assert seen == [0x31, 0x31]
        assert guest.platform.log == []

    def test_replaced_by_a_higher_one_and_withdrawn(self) -> None:
        guest = Guest()
        guest.platform.vectors[0] = [0x31]
        seen: list[int] = []
        run_script(guest, sees(seen))
        guest.platform.vectors[0].insert(0, 0x41)
        run_script(guest, sees(seen))
        guest.platform.vectors[0].clear()
        run_script(guest, sees(seen))
        assert seen == [0x31, 0x41, -1]

    def test_not_at_the_monitors_level(self) -> None:
        guest = Guest(monitor=True)
        guest.host.vcpus[0].set_vmsa(3, VMSA_1)
        guest.host.vcpus[0].start(3)
        guest.platform.vectors[0] = [0x31]
        seen: list[int] = []
        guest.machine.script(VMSA_1, sees(seen), msr(0x016))
        guest.machine.script(VMSA, sees(seen), msr(3 << 32 | 0x016))
        run_script(guest, sees(seen), vmsa=VMSA_1)
        assert seen == [0x31, -1, 0x31]

    def test_interrupted_delivery_is_repeated(self) -> None:
        guest = Guest()
        guest.host.on_npf = lambda vcpu, vmpl, gpa, info: True
        repeated: list[int] = []

        def check(vmcb: Vmcb) -> int:
            repeated.append(vmcb.event_inj)
            return ExitCode.INTR

        event = 1 << 31 | 0xEC
        run_script(guest, leave(ExitCode.NPF, 1 << 31, 0x9000, event=event), check)
        assert repeated == [event]


class TestTurns:
    def test_halted_vcpu_is_skipped(self) -> None:
        guest = two_vcpus()
        guest.machine.script(VMSA_1, leave(ExitCode.HLT))
        run_script(guest, *[leave(ExitCode.PAUSE)] * 4)
        assert guest.machine.ran.count(VMSA_1) == 1

    def test_pause_gives_the_turn_away(self) -> None:
        guest = two_vcpus()
        guest.machine.script(VMSA_1, *[leave(ExitCode.PAUSE)] * 3)
        run_script(guest, *[leave(ExitCode.PAUSE)] * 3)
        assert guest.machine.ran[:5] == [VMSA, VMSA_1, VMSA, VMSA_1, VMSA]

    def test_slices_are_short_only_if_somebody_waits(self) -> None:
        guest = two_vcpus()
        start = time.monotonic_ns()
        run_script(guest, leave(ExitCode.INTR))
        assert guest.machine.deadlines[0] - start < 40_000_000
        guest.host.vcpus[1].state = RunState.WAIT_SIPI
        start = time.monotonic_ns()
        run_script(guest, leave(ExitCode.INTR))
        assert guest.machine.deadlines[-1] - start > 40_000_000

    def test_receiver_of_an_interrupt_runs_at_once(self) -> None:
        guest = two_vcpus()
        guest.host.vcpus[1].state = RunState.HALTED
        guest.host.vcpus[1].contexts[0].vmcb.interrupt_shadow = 2
        guest.platform.msrs[0x830] = 0

        def signal(vcpu: int, register: int, value: int) -> None:
            guest.platform.vectors[1] = [0xFB]

        guest.platform.on_msr_write = signal
        taken: list[int] = []
        guest.machine.script(VMSA_1, take_interrupt(taken, ExitCode.HLT))
        guest.call(0x7C, 1, rcx=0x830, rax=0xFB, rdx=1)
        run_script(guest, leave(ExitCode.INTR))
        assert taken == [0xFB]
        assert guest.machine.ran == [VMSA, VMSA_1, VMSA]

    def test_one_vcpu_never_pauses(self) -> None:
        assert Guest().machine.pause_limit == 0
        assert two_vcpus().machine.pause_limit

    def test_masked_interrupt_does_not_wake(self) -> None:
        guest = Guest()
        guest.platform.vectors[0] = [0x31]
        with pytest.raises(GuestHung, match="interrupts off"):
            run_script(guest, leave(ExitCode.HLT, interrupts=False), leave(ExitCode.INTR))


def take_nmi(seen: list[bool], then: int = ExitCode.INTR) -> Step:
    """A step in which the CPU takes an NMI that waits; its handler runs when it is left."""

    def step(vmcb: Vmcb) -> int:
        assert vmcb.v_intr & V_NMI_ENABLE
        seen.append(bool(vmcb.v_intr & V_NMI))
        if vmcb.v_intr & V_NMI:
            vmcb.v_intr = vmcb.v_intr & ~V_NMI | V_NMI_MASK
        vmcb.interrupt_shadow = 0
        return then

    return step


class TestNmis:
    def test_taken_once_beside_an_interrupt(self) -> None:
        guest = Guest()
        guest.platform.vectors[0] = [0x31]
        guest.host.nmi(0)
        seen: list[bool] = []
        taken: list[int] = []
        run_script(guest, take_nmi(seen), take_nmi(seen), take_interrupt(taken))
        assert (seen, taken) == ([True, False], [0x31])

    def test_wakes_a_vcpu_that_has_interrupts_off_at_once(self) -> None:
        guest = two_vcpus()
        guest.host.vcpus[1].state = RunState.HALTED
        guest.host.vcpus[1].contexts[0].vmcb.interrupt_shadow = 0
        guest.platform.msrs[0x830] = 0
        guest.platform.on_msr_write = lambda vcpu, register, value: guest.host.nmi(1)
        seen: list[bool] = []
        guest.machine.script(VMSA_1, take_nmi(seen, ExitCode.HLT))
        guest.call(0x7C, 1, rcx=0x830, rax=0x400, rdx=1)
        run_script(guest, leave(ExitCode.INTR))
        assert seen == [True]
        assert guest.machine.ran == [VMSA, VMSA_1, VMSA]

    def test_one_that_must_wait_wakes_nobody(self) -> None:
        guest = Guest()
        guest.host.vcpus[0].contexts[0].vmcb.v_intr |= V_NMI_MASK
        guest.host.nmi(0)
        with pytest.raises(GuestHung, match="interrupts off"):
            run_script(guest, leave(ExitCode.HLT, interrupts=False), leave(ExitCode.INTR))

    @pytest.mark.parametrize("state", [RunState.PARKED, RunState.WAIT_SIPI])
    def test_a_vcpu_that_was_not_started_gets_none(self, state: RunState) -> None:
        guest = two_vcpus()
        guest.host.vcpus[1].state = state
        guest.host.nmi(1)
        assert not guest.host.vcpus[1].contexts[0].has_nmi

    def test_a_level_above_the_kernel_gets_none(self) -> None:
        guest = Guest(kernel_vmpl=3)
        vcpu = guest.host.vcpus[0]
        vcpu.set_vmsa(3, VMSA_1)
        guest.host.nmi(0)
        seen: list[bool] = []
        run_script(guest, take_nmi(seen))
        assert seen == [False]
        vcpu.start(3)
        run_script(guest, take_nmi(seen), vmsa=VMSA_1)
        assert seen == [False, True]

    def test_another_vmsa_has_none_in_hand(self) -> None:
        guest = Guest()
        guest.host.nmi(0)
        seen: list[bool] = []
        run_script(guest, take_nmi(seen))
        guest.host.vcpus[0].set_vmsa(0, VMSA_1)
        guest.host.nmi(0)
        run_script(guest, take_nmi(seen), vmsa=VMSA_1)
        assert seen == [True, True]


class TestSleep:
    def test_until_a_timer(self) -> None:
        guest = Guest()
        guest.platform.deadline = time.monotonic_ns() + 3_000_000

        def due(now: int) -> None:
            guest.platform.vectors[0] = [0xEC]

        guest.platform.on_tick = due
        taken: list[int] = []
        assert run_script(guest, leave(ExitCode.HLT), take_interrupt(taken)) == RunResult.DONE
        assert taken == [0xEC]

    def test_until_input_from_another_thread(self) -> None:
        guest = Guest()
        taken: list[int] = []
        arrived: list[int] = []

        def feed() -> None:
            arrived.append(threading.get_ident())
            guest.platform.vectors[0] = [0x24]

        threading.Timer(0.01, lambda: guest.host.post(feed)).start()
        run_script(guest, leave(ExitCode.HLT), take_interrupt(taken))
        assert taken == [0x24]
        assert arrived == [threading.get_ident()]
        assert guest.machine.kicks

    def test_timeout(self) -> None:
        guest = Guest()
        guest.machine.script(VMSA, leave(ExitCode.HLT))
        assert guest.host.run(timeout=0.01) == RunResult.TIMEOUT

    def test_stop(self) -> None:
        guest = Guest()
        threading.Timer(0.01, guest.host.stop).start()
        assert guest.host.run() == RunResult.STOPPED
        guest.host.stop(GuestPanic("Kernel panic - not syncing"))
        with pytest.raises(GuestPanic):
            guest.host.run()
        assert guest.host.run(timeout=0) == RunResult.TIMEOUT

    def test_reset(self) -> None:
        guest = Guest()
        assert guest.platform.on_reset is not None
        guest.platform.on_reset()
        with pytest.raises(GuestReset, match="new launch"):
            guest.host.run()

    def test_parked_for_ever(self) -> None:
        guest = Guest()
        with pytest.raises(GuestHung):
            run_script(guest, msr(0x006), leave(ExitCode.INTR))


class TestEnds:
    @pytest.mark.parametrize(
        ("step", "error", "words"),
        [
            (leave(ExitCode.SHUTDOWN), TripleFault, "triple fault"),
            (leave(ExitCode.INVALID), VmrunRefused, "EFER.SVME"),
            (leave(ExitCode.BUSY), VmrunRefused, "VINTR_CTRL"),
            (leave(0x44), UnexpectedExit, "0x44"),
            (leave(ExitCode.NPF, 1 << 31 | 1 << 34, 0x9123), NestedPageFault, "private access"),
            (leave(ExitCode.NPF, 1 << 31, 0x9123), NestedPageFault, "shared access"),
            (leave(ExitCode.NPF, 1 << 31 | 1 << 34 | 1 << 36, 0x9123), NestedPageFault, "no permission"),
            (leave(ExitCode.NPF, 1 << 31 | 1 << 34 | 1 << 35, 0x9123), NestedPageFault, "PSMASH does not help"),
            (leave(ExitCode.NPF, 4, 1 << 40), NestedPageFault, "outside"),
        ],
    )
    def test_one_clear_line(self, step: Step, error: type[HostError], words: str) -> None:
        with pytest.raises(error, match=words) as caught:
            run_script(Guest(), step)
        assert str(caught.value).startswith("VCPU 0, VMPL 0: ")
        assert "\n" not in str(caught.value)

    def test_a_busy_context_is_for_its_monitor(self) -> None:
        """Which gives back the event that an exit cut off; then it runs again."""
        guest = Guest()
        vcpu = guest.host.vcpus[0]
        vcpu.set_vmsa(3, VMSA_1)
        vcpu.start(3)
        guest.machine.script(VMSA_1, leave(ExitCode.BUSY), leave(ExitCode.INTR))
        run_script(guest, msr(0x3_0000_0016))
        assert guest.machine.ran == [VMSA_1, VMSA]
        assert vcpu.vmpl == 3

    def test_size_mismatch_is_smashed(self) -> None:
        guest = Guest()
        guest.view.large.add(512)
        assert run_script(guest, leave(ExitCode.NPF, 1 << 31 | 1 << 35, 0x20_1000)) == RunResult.DONE
        assert guest.view.large == set()

    def test_hook_decides_first(self) -> None:
        guest = Guest()
        calls: list[tuple[int, ...]] = []

        def resolve(*call: int) -> bool:
            calls.append(call)
            return True

        guest.host.on_npf = resolve
        run_script(guest, leave(ExitCode.NPF, 1 << 31 | 1 << 36, 0x9123))
        assert calls == [(0, 0, 0x9123, 1 << 31 | 1 << 36)]


class TestObserver:
    def test_events(self) -> None:
        guest = Guest(monitor=True)
        guest.host.vcpus[0].set_vmsa(3, VMSA_1)
        events: list[Event] = []
        guest.host.on_event = events.append
        guest.call_msr(2 << 52 | 0x9000 | 0x014)
        guest.call(0x7B, 0x3F8 << 16 | 1 << 4, rax=0x41)
        guest.call_msr(3 << 32 | 0x016)
        requests = [event for event in events if not isinstance(event, ExitEvent)]
        kinds = [type(event) for event in requests]
        assert kinds == [PageStateEvent, GhcbMsrEvent, GhcbEvent, VmplSwitchEvent, GhcbMsrEvent]
        assert events[0] == ExitEvent(0, 0, ExitCode.VMGEXIT, 0, 0)
        assert requests[0] == PageStateEvent(0, 0, 0x9000, PAGE, False)
        assert requests[2] == GhcbEvent(0, 0, 0x7B, 0x3F8 << 16 | 1 << 4, 0, 0, 0)
        assert requests[3] == VmplSwitchEvent(0, 0, 3)

    def test_counters(self) -> None:
        guest = Guest()
        guest.call_msr(0x002)
        guest.call(0x7B, 0x3F8 << 16 | 1 << 4, rax=0x41)
        guest.call(0x6E)
        guest.call(0xDEAD)
        assert guest.host.counters() == {"exit VMGEXIT": 4, "msr SEV_INFO": 1, "nae IOIO": 1, "nae RDTSC": 1}


class TestState:
    def restored(self, state: dict[str, Any], vcpus: int = 2) -> tuple[FakeMachine, Hypervisor]:
        machine = FakeMachine()
        host = Hypervisor(machine, FakePlatform(), vcpus)
        host.load(state)
        return machine, host

    def test_round_trip(self) -> None:
        guest = Guest(2, monitor=True)
        guest.host.vcpus[0].set_vmsa(3, VMSA_1)
        guest.platform.vectors[0] = [0x31]
        guest.call_msr(3 << 32 | 0x016)
        guest.host.vcpus[0].contexts[0].vmcb.event_inj = exception_event(13, 0)
        run_script(guest, leave(ExitCode.INTR), leave(ExitCode.HLT), vmsa=VMSA_1)
        guest.host.ap_jump_table = 0x9F000
        state = guest.host.dump()
        machine, host = self.restored(state)
        assert host.dump() == state
        assert sorted(machine.attached) == [VMSA, VMSA_1]
        vcpu = host.vcpus[0]
        assert (vcpu.vmpl, vcpu.state) == (3, RunState.HALTED)
        assert vcpu.contexts[0].ghcb == GHCB
        assert vcpu.contexts[0].vmcb.event_inj == 0x80000B0D
        assert vcpu.contexts[3].irq == 0x31
        # The interrupt that was on offer is taken after the restore.
        assert isinstance(host.platform, FakePlatform)
        host.platform.vectors[0] = [0x31]
        taken: list[int] = []
        machine.script(VMSA_1, take_interrupt(taken))
        host.run(lambda: bool(taken), timeout=5)
        assert taken == [0x31]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda state: state.pop("vcpus"),
            lambda state: state["vcpus"].pop(),
            lambda state: state["vcpus"][0].pop("current"),
            lambda state: state["vcpus"][0].update(current=2),
            lambda state: state["vcpus"][0].update(state=9),
            lambda state: state["vcpus"][0]["contexts"][0].update(vmsa="x"),
            lambda state: state["vcpus"][0]["contexts"][0].update(refused=[0x9000]),
            lambda state: state["vcpus"][0]["contexts"][0].update(handed_on=["x", None]),
        ],
    )
    def test_damaged(self, damage: Callable[[Any], object]) -> None:
        state = Guest(2).host.dump()
        damage(state)
        with pytest.raises(HostError, match="snapshot"):
            self.restored(state)


def test_bad_arguments() -> None:
    with pytest.raises(HostError, match="at least one"):
        Hypervisor(FakeMachine(), FakePlatform(), 0)
    with pytest.raises(HostError, match="APIC IDs"):
        Hypervisor(FakeMachine(), FakePlatform(), 2, apic_ids=[1, 1])
