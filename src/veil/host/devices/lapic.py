# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC of one VCPU, as the host emulates it: x2APIC by MSRs and xAPIC by MMIO (APM volume 2, chapter 16)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["APIC_BASE", "Delivery", "LocalApic"]

APIC_BASE = 0xFEE00000

_MSR_APIC_BASE = 0x1B
_MSR_TSC_DEADLINE = 0x6E0
_MSR_X2APIC = 0x800
_BASE_BSP, _BASE_X2APIC, _BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11

_ID, _VERSION, _TPR, _PPR, _EOI, _LDR, _DFR, _SVR = 0x2, 0x3, 0x8, 0xA, 0xB, 0xD, 0xE, 0xF
_ISR, _TMR, _IRR, _ESR = 0x10, 0x18, 0x20, 0x28
_ICR, _ICR_HIGH = 0x30, 0x31
_LVT_TIMER, _LVT_LINT0 = 0x32, 0x35
_LVTS = (0x2F, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37)
_TIMER_INITIAL, _TIMER_CURRENT, _TIMER_DIVIDE, _SELF_IPI = 0x38, 0x39, 0x3E, 0x3F

_MASKED = 1 << 16
_VERSION_VALUE = 0x14 | 6 << 16
_SOFTWARE_ENABLE = 1 << 8
_TIMER_MODE_SHIFT = 17
_ONE_SHOT, _PERIODIC, _DEADLINE = 0, 1, 2
#: The timer counts nanoseconds before the divider: 1 GHz, like the TSC.
_BROADCAST = 0xFFFFFFFF


class Delivery(enum.IntEnum):
    """Delivery modes."""

    FIXED = 0
    LOWEST = 1
    SMI = 2
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class LocalApic:
    """Registers, priorities and the timer. `send` carries an IPI out: (targets' test, delivery, vector)."""

    def __init__(
        self,
        apic_id: int,
        *,
        now_ns: Callable[[], int],
        tsc: Callable[[], int],
        send: Callable[[LocalApic, int, int], None],
        eoi_extint: Callable[[], None] | None = None,
    ) -> None:
        self.apic_id = apic_id
        self._now = now_ns
        self._tsc = tsc
        self._send = send
        self.base = APIC_BASE | _BASE_ENABLE | (_BASE_BSP if apic_id == 0 else 0)
        self.reset()

    def reset(self) -> None:
        """The state after INIT; the APIC ID and base stay."""
        self.irr = self.isr = 0
        self._registers = dict.fromkeys(_LVTS, _MASKED)
        self._registers |= {_TPR: 0, _SVR: 0xFF, _LDR: 0, _DFR: 0xFFFFFFFF, _TIMER_DIVIDE: 0, _ICR: 0, _ICR_HIGH: 0}
        self._initial = 0
        self._armed_ns: int | None = None
        self._deadline_tsc = 0

    @property
    def x2apic(self) -> bool:
        """In x2APIC mode?"""
        return bool(self.base & _BASE_X2APIC)

    # Interrupts

    def request(self, vector: int) -> None:
        """A fixed interrupt arrives."""
        if vector >= 16:
            self.irr |= 1 << vector

    def pending(self) -> int | None:
        """The vector to deliver now, by priority classes."""
        irr = self.irr
        if not irr:
            return None
        vector = irr.bit_length() - 1
        isr = self.isr
        floor = self._registers[_TPR] & 0xF0
        if isr:
            floor = max(floor, isr.bit_length() - 1 & 0xF0)
        return vector if vector & 0xF0 > floor else None

    def acknowledge(self) -> int | None:
        """The pending vector, in service from now on."""
        vector = self.pending()
        if vector is not None:
            self.irr &= ~(1 << vector)
            self.isr |= 1 << vector
        return vector

    @property
    def takes_extint(self) -> bool:
        """Does LINT0 pass the PIC's interrupts (virtual wire), as it does before software takes over?"""
        lint0 = self._registers[_LVT_LINT0]
        if not self._registers[_SVR] & _SOFTWARE_ENABLE:
            return self.apic_id == 0
        return not lint0 & _MASKED and lint0 >> 8 & 7 == Delivery.EXTINT

    def matches(self, destination: int, *, logical: bool) -> bool:
        """Is this APIC meant?"""
        if destination == _BROADCAST or (not self.x2apic and destination == 0xFF):
            return True
        if not logical:
            return destination == self.apic_id
        ldr = self.logical_id
        if self.x2apic:
            return destination >> 16 == ldr >> 16 and bool(destination & ldr & 0xFFFF)
        return bool(destination & ldr >> 24)

    @property
    def logical_id(self) -> int:
        """LDR; in x2APIC mode it follows from the ID."""
        if self.x2apic:
            return self.apic_id >> 4 << 16 | 1 << (self.apic_id & 15)
        return self._registers[_LDR]

    # Timer

    def next_deadline_ns(self) -> int | None:
        """When the timer fires."""
        return self._armed_ns

    def expire(self, now: int) -> None:
        """Fire the timer if it is due."""
        if self._armed_ns is None or now < self._armed_ns:
            return
        lvt = self._registers[_LVT_TIMER]
        if not lvt & _MASKED:
            self.request(lvt & 0xFF)
        if lvt >> _TIMER_MODE_SHIFT & 3 == _PERIODIC and self._initial:
            period = self._initial * self._divider()
            self._armed_ns += period * (1 + (now - self._armed_ns) // period)
        else:
            self._armed_ns = None
            self._deadline_tsc = 0

    def _divider(self) -> int:
        value = self._registers[_TIMER_DIVIDE]
        code = value & 3 | value >> 1 & 4
        return 1 if code == 7 else 2 << code

    def _arm(self) -> None:
        mode = self._registers[_LVT_TIMER] >> _TIMER_MODE_SHIFT & 3
        if mode == _DEADLINE:
            if self._deadline_tsc:
                # The TSC counts nanoseconds.
                self._armed_ns = self._now() + max(0, self._deadline_tsc - self._tsc())
            else:
                self._armed_ns = None
        else:
            self._armed_ns = self._now() + self._initial * self._divider() if self._initial else None

    def _current(self) -> int:
        if self._armed_ns is None or not self._initial:
            return 0
        return max(0, self._armed_ns - self._now()) // self._divider()

    # Registers, by x2APIC index (the xAPIC offset divided by 16)

    def _read(self, index: int) -> int:
        if index == _ID:
            return self.apic_id if self.x2apic else self.apic_id << 24
        if index == _VERSION:
            return _VERSION_VALUE
        if index == _LDR:
            return self.logical_id
        if index == _PPR:
            return max(self._registers[_TPR] & 0xFF, (self.isr.bit_length() - 1 & 0xF0) if self.isr else 0)
        if _ISR <= index < _ISR + 8:
            return self.isr >> 32 * (index - _ISR) & 0xFFFFFFFF
        if _IRR <= index < _IRR + 8:
            return self.irr >> 32 * (index - _IRR) & 0xFFFFFFFF
        if index == _TIMER_INITIAL:
            return self._initial
        if index == _TIMER_CURRENT:
            return self._current()
        return self._registers.get(index, 0)

    def _write(self, index: int, value: int) -> None:
        if index == _EOI:
            self.isr &= ~(1 << self.isr.bit_length() - 1) if self.isr else 0
        elif index == _ICR:
            self._registers[_ICR] = value & 0xFFFFFFFF & ~(1 << 12)
            high = value >> 32 if self.x2apic else self._registers[_ICR_HIGH] >> 24
            self._send(self, value & 0xFFFFFFFF, high)
        elif index == _SELF_IPI:
            self.request(value & 0xFF)
        elif index == _TIMER_INITIAL:
            self._initial = value & 0xFFFFFFFF
            if self._registers[_LVT_TIMER] >> _TIMER_MODE_SHIFT & 3 != _DEADLINE:
                self._arm()
        elif index == _LVT_TIMER:
            before = self._registers[_LVT_TIMER] >> _TIMER_MODE_SHIFT & 3
            self._registers[_LVT_TIMER] = value & 0xFFFFFFFF
            if value >> _TIMER_MODE_SHIFT & 3 != before:
                self._initial = self._deadline_tsc = 0
                self._armed_ns = None
        elif index in self._registers:
            self._registers[index] = value & 0xFFFFFFFF

    def read_msr(self, msr: int) -> int | None:
        """RDMSR of an APIC MSR; None is #GP."""
        if msr == _MSR_APIC_BASE:
            return self.base
        if msr == _MSR_TSC_DEADLINE:
            return self._deadline_tsc
        if not self.x2apic or not _MSR_X2APIC <= msr < _MSR_X2APIC + 0x100:
            return None
        index = msr - _MSR_X2APIC
        if index == _ICR:
            return self._registers[_ICR] | self._registers[_ICR_HIGH] << 32
        return self._read(index)

    def write_msr(self, msr: int, value: int) -> bool:
        """WRMSR; False is #GP."""
        if msr == _MSR_TSC_DEADLINE:
            if self._registers[_LVT_TIMER] >> _TIMER_MODE_SHIFT & 3 == _DEADLINE:
                self._deadline_tsc = value
                self._arm()
            return True
        if msr == _MSR_APIC_BASE:
            if value & ~0xFFF & 0xFFFFFFFF != APIC_BASE:
                return False
            self.base = APIC_BASE | self.base & _BASE_BSP | value & (_BASE_X2APIC | _BASE_ENABLE)
            return True
        if not self.x2apic or not _MSR_X2APIC <= msr < _MSR_X2APIC + 0x100:
            return False
        index = msr - _MSR_X2APIC
        if index == _ICR:
            self._registers[_ICR_HIGH] = value >> 32
        self._write(index, value)
        return True

    def read_mmio(self, offset: int) -> int:
        """A read of the xAPIC page."""
        return 0 if self.x2apic or offset & 0xF else self._read(offset >> 4)

    def write_mmio(self, offset: int, value: int) -> None:
        """A write to the xAPIC page."""
        if not self.x2apic and not offset & 0xF:
            self._write(offset >> 4, value)

    # Snapshots

    def state(self) -> dict[str, Any]:
        """For a snapshot; the timer as nanoseconds still to go."""
        return {
            "irr": self.irr.to_bytes(32, "little"),
            "isr": self.isr.to_bytes(32, "little"),
            "registers": sorted(self._registers.items()),
            "base": self.base,
            "initial": self._initial,
            "left_ns": None if self._armed_ns is None else max(0, self._armed_ns - self._now()),
            "deadline_tsc": self._deadline_tsc,
        }

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self.irr = int.from_bytes(state["irr"], "little")
        self.isr = int.from_bytes(state["isr"], "little")
        self._registers = dict(state["registers"])
        self.base, self._initial = state["base"], state["initial"]
        self._deadline_tsc = state["deadline_tsc"]
        self._armed_ns = None if state["left_ns"] is None else self._now() + state["left_ns"]


def decode_icr(low: int) -> tuple[Delivery | None, int, bool, int]:
    """Delivery mode, vector, logical?, shorthand (0 none, 1 self, 2 all, 3 all but self) of an ICR."""
    mode = low >> 8 & 7
    delivery = Delivery(mode) if mode in Delivery.__members__.values() else None
    return delivery, low & 0xFF, bool(low >> 11 & 1), low >> 18 & 3


def route(apics: Sequence[LocalApic], sender: LocalApic, low: int, destination: int) -> list[LocalApic]:
    """Who gets an IPI."""
    _, _, logical, shorthand = decode_icr(low)
    if shorthand == 1:
        return [sender]
    if shorthand:
        return [apic for apic in apics if shorthand == 2 or apic is not sender]
    return [apic for apic in apics if apic.matches(destination, logical=logical)]
