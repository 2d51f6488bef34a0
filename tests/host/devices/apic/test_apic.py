# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC: modes, priorities (against a small model), timer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.examples import examples
from tests.host.devices.fakes import Clock
from veil.host.devices import LocalApic
from veil.host.devices.apic.apic import Register

BASE = 0xFEE00000
ENABLE, EXTD, BSP = 1 << 11, 1 << 10, 1 << 8
MODE_PERIODIC, MODE_DEADLINE = 1 << 17, 2 << 17
Sent = list[tuple[int, int]]


def make(*, apic_id: int = 0, bsp: bool = True, x2apic: bool = False) -> tuple[LocalApic, Clock, Sent]:
    clock = Clock()
    sent: Sent = []
    apic = LocalApic(apic_id, clock, lambda sender, icr, to: sent.append((icr, to)), bsp=bsp, x2apic=x2apic)
    return apic, clock, sent


def mmio(apic: LocalApic, register: int, value: int | None = None) -> int:
    if value is None:
        return apic.read_page(register << 4, 4)
    apic.write_page(register << 4, 4, value)
    return 0


def enabled(**how: bool) -> tuple[LocalApic, Clock, Sent]:
    apic, clock, sent = make(**how)
    if apic.x2apic:
        assert apic.write_msr(Register.SVR, 0x1FF)
    else:
        mmio(apic, Register.SVR, 0x1FF)
    return apic, clock, sent


class TestModes:
    def test_reset_state(self) -> None:
        apic, _, _ = make()
        assert apic.base == BASE | ENABLE | BSP
        assert mmio(apic, Register.VERSION) == 0x50014
        assert mmio(apic, Register.SVR) == 0xFF
        assert mmio(apic, Register.LVT_TIMER) == 0x10000
        assert apic.takes_extint, "the boot processor gets the timer's first ticks through LINT0"
        assert not make(apic_id=1, bsp=False)[0].takes_extint

    def test_x2apic_is_entered_and_left_only_as_specified(self) -> None:
        apic, _, _ = make(apic_id=0x23)
        assert not apic.write_base(BASE | EXTD)
        assert apic.write_base(BASE | ENABLE | EXTD)
        assert apic.base == BASE | ENABLE | EXTD | BSP
        assert not apic.write_base(BASE | ENABLE), "from x2APIC straight to xAPIC"
        assert apic.read_msr(Register.ID) == 0x23
        assert apic.read_msr(Register.LDR) == 2 << 16 | 1 << 3
        assert apic.write_base(BASE)
        assert not apic.write_base(BASE | ENABLE | EXTD), "from off straight to x2APIC"
        assert apic.write_base(BASE | ENABLE)

    def test_where_its_page_may_be(self) -> None:
        apic, _, _ = make()
        assert not apic.write_base(BASE | ENABLE | 1)
        assert not apic.write_base(BASE | ENABLE | 1 << 48)
        assert apic.page == BASE
        assert apic.write_base(0xFED40000 | ENABLE)
        assert (apic.page, apic.base & 0xFFFFFFFFFF000) == (0xFED40000, 0xFED40000)
        other, _, _ = make()
        other.load(apic.dump())
        assert other.page == 0xFED40000

    def test_each_mode_has_its_own_door(self) -> None:
        apic, _, _ = make()
        assert apic.read_msr(Register.ID) is None
        assert not apic.write_msr(Register.TPR, 0)
        apic.write_base(BASE | ENABLE | EXTD)
        assert mmio(apic, Register.ID) == 0xFFFFFFFF
        assert apic.read_msr(Register.ICR_HIGH) is None
        assert apic.read_msr(Register.DFR) is None
        assert apic.read_msr(Register.EOI) is None
        assert not apic.write_msr(Register.ID, 1)
        assert not apic.write_msr(Register.EOI, 1)
        assert not apic.write_msr(Register.SVR, 1 << 32)
        assert apic.read_msr(Register.APR) is None
        assert not apic.write_msr(Register.SELF_IPI, 0x100)

    def test_off_means_off(self) -> None:
        apic, _, _ = enabled()
        apic.accept(0x40)
        apic.write_base(BASE)
        assert apic.pending is None
        assert apic.takes_extint, "without an APIC, INTR comes straight from the 8259"
        apic.accept(0x41)
        assert apic.irr == 0

    def test_software_disable_masks_the_local_vectors(self) -> None:
        apic, _, _ = enabled()
        mmio(apic, Register.LVT_LINT0, 0x700)
        assert apic.takes_extint
        mmio(apic, Register.SVR, 0xFF)
        assert not apic.takes_extint
        mmio(apic, Register.LVT_LINT0, 0x700)
        assert mmio(apic, Register.LVT_LINT0) & 0x10000

    def test_accesses_of_odd_sizes(self) -> None:
        apic, _, _ = enabled()
        assert apic.read_page(0x30, 1) == 0x14
        assert apic.read_page(0x32, 1) == 5
        assert apic.read_page(0x32, 4) == 0
        apic.write_page(0x80, 1, 0x55)
        apic.write_page(0x84, 4, 0x55)
        assert mmio(apic, Register.TPR) == 0


class TestInterrupts:
    def test_priority_by_class(self) -> None:
        apic, _, _ = enabled()
        apic.accept(0x31)
        apic.accept(0x52)
        assert apic.acknowledge() == 0x52
        assert apic.pending is None
        apic.accept(0x5F)
        assert apic.pending is None, "the same class has to wait"
        apic.accept(0x60)
        assert apic.acknowledge() == 0x60
        assert mmio(apic, Register.PPR) == 0x60
        mmio(apic, Register.EOI, 0)
        assert apic.pending is None
        mmio(apic, Register.EOI, 0)
        assert apic.acknowledge() == 0x5F

    def test_task_priority_is_the_processors_to_heed(self) -> None:
        """It is CR8, which the APIC writes and reads."""
        apic, _, _ = enabled()
        cr8 = 0

        def write(value: int) -> None:
            nonlocal cr8
            cr8 = value

        apic.read_cr8, apic.write_cr8 = lambda: cr8, write
        mmio(apic, Register.TPR, 0x43)
        apic.accept(0x4F)
        assert (cr8, apic.pending) == (4, 0x4F)
        assert mmio(apic, Register.TPR) == 0x43
        cr8 = 7
        assert mmio(apic, Register.TPR) == mmio(apic, Register.PPR) == 0x70, "MOV to CR8 clears the lower half"
        apic.reset()
        assert cr8 == 0

    def test_spurious(self) -> None:
        apic, _, _ = enabled()
        assert apic.acknowledge() == 0xFF
        assert apic.isr == 0

    def test_bitmaps(self) -> None:
        apic, _, _ = enabled()
        apic.accept(0xEC)
        assert mmio(apic, Register.IRR + 7) == 1 << 12
        apic.accept(0x45, level=True)
        assert mmio(apic, Register.TMR + 2) == 1 << 5
        apic.acknowledge()
        assert mmio(apic, Register.ISR + 7) == 1 << 12
        assert mmio(apic, Register.IRR + 7) == 0

    def test_illegal_vectors_are_errors(self) -> None:
        apic, _, _ = enabled()
        mmio(apic, Register.LVT_ERROR, 0xFE)
        apic.accept(3)
        assert apic.pending == 0xFE
        mmio(apic, Register.ESR, 0)
        assert mmio(apic, Register.ESR) == 0x40
        mmio(apic, Register.ESR, 0)
        assert mmio(apic, Register.ESR) == 0
        mmio(apic, Register.LVT_ERROR, 2)
        apic.accept(3)

    def test_icr(self) -> None:
        apic, _, sent = enabled()
        mmio(apic, Register.ICR_HIGH, 0x02000000)
        mmio(apic, Register.ICR, 0x4FD)
        assert sent == [(0x4FD, 2)]
        assert not mmio(apic, Register.ICR) & 1 << 12
        x2, _, sent = enabled(x2apic=True)
        assert x2.write_msr(Register.ICR, 0x12345678_000000FB)
        assert sent == [(0xFB, 0x12345678)]
        assert x2.read_msr(Register.ICR) == 0x12345678_000000FB

    def test_self_ipi(self) -> None:
        apic, _, _ = enabled(x2apic=True)
        assert apic.write_msr(Register.SELF_IPI, 0x77)
        assert apic.pending == 0x77


class TestDestinations:
    def test_physical(self) -> None:
        apic, _, _ = make(apic_id=3, bsp=False)
        assert apic.matches(3, logical=False, wide=False)
        assert apic.matches(0xFF, logical=False, wide=False)
        assert not apic.matches(0xFF, logical=False, wide=True)
        assert apic.matches(0xFFFFFFFF, logical=False, wide=True)
        assert not apic.matches(2, logical=False, wide=False)

    def test_flat_and_cluster(self) -> None:
        apic, _, _ = enabled()
        mmio(apic, Register.LDR, 0x04000000)
        assert apic.matches(0x06, logical=True, wide=False)
        assert not apic.matches(0x03, logical=True, wide=False)
        mmio(apic, Register.DFR, 0)
        mmio(apic, Register.LDR, 0x24000000)
        assert apic.matches(0x2C, logical=True, wide=False)
        assert apic.matches(0xF4, logical=True, wide=False)
        assert not apic.matches(0x34, logical=True, wide=False)

    def test_x2apic_clusters(self) -> None:
        from_start, _, _ = make(apic_id=0x25, x2apic=True)
        apic, _, _ = make(apic_id=0x25)
        apic.write_base(BASE | ENABLE | EXTD)
        assert from_start.read_msr(Register.LDR) == apic.read_msr(Register.LDR)
        assert apic.matches(2 << 16 | 0xFFFF, logical=True, wide=True)
        assert not apic.matches(2 << 16 | 0xFFDF, logical=True, wide=True)
        assert not apic.matches(3 << 16 | 0xFFFF, logical=True, wide=True)


class TestTimer:
    def test_one_shot(self) -> None:
        apic, clock, _ = enabled()
        mmio(apic, Register.LVT_TIMER, 0xEC)
        mmio(apic, Register.TIMER_DIVIDE, 0x3)  # by 16
        mmio(apic, Register.TIMER_INITIAL, 1000)
        clock.advance(8000)
        assert mmio(apic, Register.TIMER_CURRENT) == 500
        apic.tick(clock.time)
        assert apic.pending is None
        clock.advance(8000)
        assert apic.timer.deadline_ns == clock.time
        apic.tick(clock.time)
        assert apic.pending == 0xEC
        assert apic.timer.deadline_ns is None
        assert mmio(apic, Register.TIMER_CURRENT) == 0

    def test_all_dividers(self) -> None:
        apic, _, _ = enabled()
        for code, divisor in {0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128, 11: 1}.items():
            mmio(apic, Register.TIMER_DIVIDE, code)
            assert apic.timer._tick_ns == divisor

    def test_periodic_never_floods(self) -> None:
        apic, clock, _ = enabled()
        mmio(apic, Register.TIMER_DIVIDE, 0xB)
        mmio(apic, Register.LVT_TIMER, MODE_PERIODIC | 0xEC)
        mmio(apic, Register.TIMER_INITIAL, 1)
        clock.advance(10**9)
        apic.tick(clock.time)
        assert apic.acknowledge() == 0xEC
        assert apic.timer.deadline_ns is not None
        assert apic.timer.deadline_ns > clock.time
        mmio(apic, Register.TIMER_INITIAL, 0)
        assert apic.timer.deadline_ns is None

    def test_tsc_deadline(self) -> None:
        apic, clock, _ = enabled()
        apic.timer.set_deadline(5)
        assert apic.timer.deadline_ns is None, "not in this mode"
        mmio(apic, Register.LVT_TIMER, MODE_DEADLINE | 0xEC)
        apic.timer.set_deadline(clock.tsc() + 2_000_000)
        assert apic.timer.deadline_ns == clock.time + 1_000_000, "the TSC runs at 2 GHz"
        clock.advance(1_000_000)
        apic.tick(clock.time)
        assert apic.pending == 0xEC
        assert apic.timer.deadline_tsc == 0
        apic.timer.set_deadline(1)
        apic.tick(clock.time)
        assert apic.irr >> 0xEC & 1, "the past fires at once"
        apic.timer.set_deadline((1 << 64) - 1)
        assert apic.timer.deadline_ns is None

    def test_masked_timer_is_silent(self) -> None:
        apic, clock, _ = enabled()
        mmio(apic, Register.LVT_TIMER, 0x100EC)
        mmio(apic, Register.TIMER_INITIAL, 10)
        clock.advance(1000)
        apic.tick(clock.time)
        assert apic.irr == 0

    def test_changing_the_mode_disarms(self) -> None:
        apic, clock, _ = enabled()
        mmio(apic, Register.LVT_TIMER, MODE_DEADLINE | 0xEC)
        apic.timer.set_deadline(clock.tsc() + 10**9)
        mmio(apic, Register.LVT_TIMER, 0xEC)
        assert apic.timer.deadline_ns is None
        mmio(apic, Register.TIMER_INITIAL, 10)
        mmio(apic, Register.LVT_TIMER, MODE_DEADLINE | 0xEC)
        assert apic.timer.deadline_ns is None

    def test_deadlines_survive_in_another_process(self) -> None:
        apic, clock, _ = enabled()
        mmio(apic, Register.LVT_TIMER, MODE_DEADLINE | 0xEC)
        apic.timer.set_deadline(clock.tsc() + 2_000_000)
        apic.accept(0x99)
        apic.acknowledge()
        apic.accept(0xA5)
        other, later, _ = make()
        later.time, offset = 99_000_000_000, clock.tsc() - 2 * 99_000_000_000
        later.tsc = lambda: later.time * 2 + offset  # type: ignore[method-assign]
        other.load(apic.dump())
        assert other.timer.deadline_ns == later.time + 1_000_000
        assert (other.irr, other.isr, other.pending) == (apic.irr, apic.isr, apic.pending)
        assert other.dump() == apic.dump()


class PriorityMachine(RuleBasedStateMachine):
    """The APIC's priorities against lists of requested and serviced vectors (APM volume 2, 16.6.4)."""

    def __init__(self) -> None:
        super().__init__()
        self.apic, _, _ = enabled(x2apic=True)
        self.requested: set[int] = set()
        self.in_service: set[int] = set()
        self.task_priority = 0
        self.on = True

    @rule(vector=st.integers(16, 255))
    def accept(self, vector: int) -> None:
        self.apic.accept(vector)
        if self.on:
            self.requested.add(vector)

    @rule(value=st.integers(0, 255))
    def set_task_priority(self, value: int) -> None:
        assert self.apic.write_msr(Register.TPR, value)
        self.task_priority = value

    @rule(on=st.booleans())
    def software_enable(self, on: bool) -> None:
        assert self.apic.write_msr(Register.SVR, 0xFF | on << 8)
        self.on = on

    @rule()
    def end_of_interrupt(self) -> None:
        assert self.apic.write_msr(Register.EOI, 0)
        if self.in_service:
            self.in_service.remove(max(self.in_service))

    @rule()
    def acknowledge(self) -> None:
        expected = self.expected()
        if expected is None:
            assert self.apic.acknowledge() == 0xFF
        else:
            assert self.apic.acknowledge() == expected
            self.requested.remove(expected)
            self.in_service.add(expected)

    @rule()
    def snapshot(self) -> None:
        other, _, _ = make()
        other.load(self.apic.dump())
        self.apic = other

    def expected(self) -> int | None:
        floor = max((vector // 16 for vector in self.in_service), default=0)
        ready = [vector for vector in self.requested if vector // 16 > floor]
        return max(ready) if ready and self.on else None

    @invariant()
    def agrees(self) -> None:
        assert self.apic.pending == self.expected()
        classes = [vector & 0xF0 for vector in self.in_service]
        top = max(classes, default=0)
        assert self.apic.processor_priority() & 0xF0 == max(self.task_priority & 0xF0, top)


TestPriorities = PriorityMachine.TestCase
TestPriorities.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 0xFFF), st.integers(0, (1 << 64) - 1)), max_size=50))
def test_no_access_breaks_it(accesses: list[tuple[bool, int, int]]) -> None:
    apic, clock, _ = make()
    for page, place, value in accesses:
        if page:
            apic.write_page(place, 4, value & 0xFFFFFFFF)
            apic.read_page(place, 4)
        else:
            apic.write_msr(place & 0xFF, value)
            apic.read_msr(place & 0xFF)
            apic.write_base(BASE | value & (ENABLE | EXTD))
            apic.timer.set_deadline(value)
        clock.advance(value & 0xFFFFF)
        apic.tick(clock.time)
        assert apic.timer.deadline_ns is None or apic.timer.deadline_ns > clock.time - 1
        if value & 1:
            apic.acknowledge()
        other, _, _ = make()
        other.load(apic.dump())
        assert other.pending == apic.pending
