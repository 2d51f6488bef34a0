# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC of one VCPU, in xAPIC and x2APIC mode (APM volume 2, chapter 16; Intel SDM volume 3, chapter 10).

Registers are named by their x2APIC index: the offset in the xAPIC page divided by 16, or the MSR less 0x800.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from veil.formats.board import LOCAL_APIC
from veil.host.devices._state import checked_int, load_integers, save_integers
from veil.host.devices.apic.timer import ApicTimer, TimerMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.apic.timer import Clock

__all__ = ["APIC_PAGE_SIZE", "Delivery", "LocalApic", "Register"]

APIC_PAGE_SIZE = 0x1000

BASE_BSP = 1 << 8
BASE_X2APIC = 1 << 10
BASE_ENABLE = 1 << 11
#: of physical addresses of 48 bits
_BASE_PAGE = 0xFFFFFFFFF000
_BASE_RESERVED = ~(BASE_BSP | BASE_X2APIC | BASE_ENABLE | _BASE_PAGE) & (1 << 64) - 1

_MASK_32 = 0xFFFFFFFF
_MASKED = 1 << 16
_SVR_ENABLE = 1 << 8
_ICR_STATUS = 1 << 12
_VERSION = 0x14 | 5 << 16
_FLAT_MODEL = 0xF
_ILLEGAL_RECEIVED = 1 << 6
_LOWEST_VECTOR = 16


class Delivery(enum.IntEnum):
    """Delivery modes (APM volume 2, 16.5)."""

    FIXED = 0
    LOWEST = 1
    SMI = 2
    RESERVED = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Register(enum.IntEnum):
    """Indices."""

    ID = 0x02
    VERSION = 0x03
    TPR = 0x08
    APR = 0x09
    PPR = 0x0A
    EOI = 0x0B
    LDR = 0x0D
    DFR = 0x0E
    SVR = 0x0F
    ISR = 0x10
    TMR = 0x18
    IRR = 0x20
    ESR = 0x28
    ICR = 0x30
    ICR_HIGH = 0x31
    LVT_TIMER = 0x32
    LVT_THERMAL = 0x33
    LVT_PERFORMANCE = 0x34
    LVT_LINT0 = 0x35
    LVT_LINT1 = 0x36
    LVT_ERROR = 0x37
    TIMER_INITIAL = 0x38
    TIMER_CURRENT = 0x39
    TIMER_DIVIDE = 0x3E
    SELF_IPI = 0x3F


_LVT_WRITABLE = {
    int(Register.LVT_TIMER): 0x700FF,
    int(Register.LVT_THERMAL): 0x107FF,
    int(Register.LVT_PERFORMANCE): 0x107FF,
    int(Register.LVT_LINT0): 0x1A7FF,
    int(Register.LVT_LINT1): 0x1A7FF,
    int(Register.LVT_ERROR): 0x100FF,
}

# The registers that exist, by who may do what.
_READ_ONLY = frozenset(
    {Register.VERSION, Register.APR, Register.PPR, Register.TIMER_CURRENT}
    | {bank + index for bank in (Register.ISR, Register.TMR, Register.IRR) for index in range(8)}
)
_WRITE_ONLY = frozenset({Register.EOI})
_READ_WRITE = frozenset(
    {Register.TPR, Register.SVR, Register.ESR, Register.ICR, Register.TIMER_INITIAL, Register.TIMER_DIVIDE}
) | frozenset(_LVT_WRITABLE)
_XAPIC_READABLE = _READ_ONLY | _READ_WRITE | {Register.ID, Register.LDR, Register.DFR, Register.ICR_HIGH}
_XAPIC_WRITABLE = _READ_WRITE | _WRITE_ONLY | {Register.LDR, Register.DFR, Register.ICR_HIGH}
#: Without arbitration priorities (Intel SDM volume 3, table 10-6).
_X2APIC_READABLE = (_READ_ONLY | _READ_WRITE | {Register.ID, Register.LDR}) - {Register.APR}
_X2APIC_WRITABLE = _READ_WRITE | _WRITE_ONLY | {Register.SELF_IPI}


class LocalApic:
    """`pending` is the vector that the processor would get now if CR8 lets it, None if there is none.

    `send(self, icr, destination)` carries interrupts to other processors; `destination` is as wide as the mode has it.
    `ended(vector)` hears of the EOI of each level-triggered interrupt. TPR's upper half is the processor's CR8, which
    holds interrupts back by itself: `read_cr8` and `write_cr8` are set by who runs it.
    """

    _SAVED = (
        "irr", "isr", "_tmr", "base", "_tpr", "_ldr", "_dfr", "_svr", "_icr", "_icr_high", "_esr", "_errors",
    )  # fmt: skip

    def __init__(
        self,
        apic_id: int,
        clock: Clock,
        send: Callable[[LocalApic, int, int], None],
        ended: Callable[[int], None] = lambda vector: None,
        *,
        bsp: bool,
        x2apic: bool = False,
    ) -> None:
        self.apic_id = apic_id
        self.timer = ApicTimer(clock)
        self._send = send
        self._ended = ended
        self._bsp = bsp
        self.base = LOCAL_APIC | BASE_ENABLE | (BASE_BSP if bsp else 0) | (BASE_X2APIC if x2apic else 0)
        self.irr = 0
        self.isr = 0
        self.page = LOCAL_APIC
        self._tpr = 0
        self.pending: int | None = None
        self.read_cr8: Callable[[], int] | None = None
        self.write_cr8: Callable[[int], None] | None = None
        #: does LINT0 pass the 8259's interrupts on?
        self.takes_extint = False
        self.reset()

    def reset(self) -> None:
        """What INIT makes of it: ID and base address stay."""
        self.irr = self.isr = self._tmr = 0
        self._set_task_priority(0)
        self._ldr = self._x2apic_ldr() if self.x2apic else 0
        self._dfr = _MASK_32
        self._svr = 0xFF
        self._icr = self._icr_high = 0
        self._esr = self._errors = 0
        self._lvt = dict.fromkeys(_LVT_WRITABLE, _MASKED)
        if self._bsp:
            # As firmware leaves it, and KVM: virtual wire mode, or the first timer tick would never arrive.
            self._lvt[Register.LVT_LINT0] = Delivery.EXTINT << 8
            self._lvt[Register.LVT_LINT1] = Delivery.NMI << 8
        self.timer.reset()
        self._update()

    # Modes

    @property
    def enabled(self) -> bool:
        """Is it on at all (IA32_APIC_BASE.EN)?"""
        return bool(self.base & BASE_ENABLE)

    @property
    def x2apic(self) -> bool:
        """In x2APIC mode?"""
        return bool(self.base & BASE_X2APIC)

    @property
    def software_enabled(self) -> bool:
        """Bit 8 of the spurious vector register."""
        return bool(self._svr & _SVR_ENABLE)

    def write_base(self, value: int) -> bool:
        """WRMSR to IA32_APIC_BASE; False is #GP. Where there is memory, the page is not seen."""
        enable, x2apic = value & BASE_ENABLE, value & BASE_X2APIC
        if value & _BASE_RESERVED or (x2apic and not enable):
            return False
        was_x2apic = self.base & BASE_X2APIC
        # From x2APIC mode the only ways lead to off; from off the only way leads to xAPIC mode.
        if (was_x2apic and enable and not x2apic) or (not self.base & BASE_ENABLE and x2apic):
            return False
        was_enabled = self.base & BASE_ENABLE
        self.page = value & _BASE_PAGE
        self.base = self.page | enable | x2apic | self.base & BASE_BSP
        if was_enabled and not enable:
            self.reset()
        if x2apic and not was_x2apic:
            self._ldr = self._x2apic_ldr()
            self._icr &= _MASK_32
        self._update()
        return True

    def _x2apic_ldr(self) -> int:
        return self.apic_id >> 4 << 16 | 1 << (self.apic_id & 0xF)

    # Priorities

    def _in_service(self) -> int:
        isr = self.isr
        return isr.bit_length() - 1 & 0xF0 if isr else 0

    def task_priority(self) -> int:
        """TPR. A MOV to CR8 clears its lower half."""
        if self.read_cr8 is not None and self.read_cr8() != self._tpr >> 4:
            self._tpr = self.read_cr8() << 4
        return self._tpr

    def _set_task_priority(self, value: int) -> None:
        self._tpr = value
        if self.write_cr8 is not None:
            self.write_cr8(value >> 4)

    def processor_priority(self) -> int:
        """PPR (APM volume 2, 16.6.4)."""
        tpr, in_service = self.task_priority(), self._in_service()
        return tpr if tpr & 0xF0 >= in_service else in_service

    def _update(self) -> None:
        self.takes_extint = not self.base & BASE_ENABLE or (
            not self._lvt[Register.LVT_LINT0] & _MASKED and self._lvt[Register.LVT_LINT0] >> 8 & 7 == Delivery.EXTINT
        )
        if self.irr:
            self._update_pending()
        else:
            self.pending = None

    def _update_pending(self) -> None:
        irr = self.irr
        if irr and self._svr & _SVR_ENABLE and self.base & BASE_ENABLE:
            vector = irr.bit_length() - 1
            self.pending = vector if vector & 0xF0 > self._in_service() else None
        else:
            self.pending = None

    def accept(self, vector: int, *, level: bool = False) -> bool:
        """A fixed interrupt arrives; False: it is not taken."""
        if not self.base & BASE_ENABLE or not self._svr & _SVR_ENABLE:
            return False
        if vector < _LOWEST_VECTOR:
            self._error(_ILLEGAL_RECEIVED)
            return False
        bit = 1 << vector
        self._tmr = self._tmr | bit if level else self._tmr & ~bit
        self.irr |= bit
        self._update_pending()
        return True

    def acknowledge(self) -> int:
        """The processor takes the pending vector, which is in service from now on; else it gets the spurious one."""
        vector = self.pending
        if vector is None:
            return self._svr & 0xFF
        bit = 1 << vector
        self.irr &= ~bit
        self.isr |= bit
        # Nothing of the same class may follow before EOI, and what is higher would have come first.
        self.pending = None
        return vector

    def _end_of_interrupt(self) -> None:
        isr = self.isr
        if isr:
            vector = isr.bit_length() - 1
            self.isr = isr ^ 1 << vector
            if self._tmr >> vector & 1:
                self._ended(vector)
            if self.irr:
                self._update_pending()

    def _error(self, bits: int) -> None:
        self._errors |= bits
        lvt = self._lvt[Register.LVT_ERROR]
        # An error interrupt with an illegal vector would be an error again.
        if not lvt & _MASKED and lvt & 0xFF >= _LOWEST_VECTOR:
            self.accept(lvt & 0xFF)

    def send_error(self, bits: int) -> None:
        """The sender of an interrupt that cannot be."""
        self._error(bits)

    def tick(self, now: int) -> None:
        """Fire the timer if its time has come."""
        if self.timer.fire(now):
            lvt = self._lvt[Register.LVT_TIMER]
            if not lvt & _MASKED:
                self.accept(lvt & 0xFF)

    def matches(self, destination: int, *, logical: bool, wide: bool) -> bool:
        """Is this APIC meant? `wide` destinations have 32 bits, those of xAPIC senders and of messages 8."""
        if destination == (_MASK_32 if wide else 0xFF):
            return True
        if not logical:
            return destination == (self.apic_id if self.x2apic or wide else self.apic_id & 0xFF)
        if self.x2apic:
            ldr = self._ldr
            return destination >> 16 == ldr >> 16 and bool(destination & ldr & 0xFFFF)
        mine = self._ldr >> 24
        if self._dfr >> 28 == _FLAT_MODEL:
            return bool(destination & mine)
        return (destination >> 4 == mine >> 4 or destination >> 4 == 0xF) and bool(destination & mine & 0xF)

    # Registers

    def _read(self, index: int) -> int:
        lvt = self._lvt.get(index)
        if lvt is not None:
            return lvt
        for bank, bits in ((Register.ISR, self.isr), (Register.TMR, self._tmr), (Register.IRR, self.irr)):
            if bank <= index < bank + 8:
                return bits >> 32 * (index - bank) & _MASK_32
        simple = {
            Register.ID: self.apic_id if self.x2apic else self.apic_id << 24 & _MASK_32,
            Register.VERSION: _VERSION,
            Register.TPR: self.task_priority(),
            Register.PPR: self.processor_priority(),
            Register.LDR: self._ldr,
            Register.DFR: self._dfr,
            Register.SVR: self._svr,
            Register.ESR: self._esr,
            Register.ICR: self._icr,
            Register.ICR_HIGH: self._icr_high,
            Register.TIMER_INITIAL: self.timer.initial_count,
            Register.TIMER_DIVIDE: self.timer.divide_register,
        }
        if index == Register.TIMER_CURRENT:
            return self.timer.current_count()
        return simple.get(Register(index), 0)

    def _write(self, index: int, value: int) -> None:
        if index == Register.EOI:
            self._end_of_interrupt()
        elif index == Register.ICR:
            self._icr = value & ~_ICR_STATUS
            if self.x2apic:
                self._send(self, value & _MASK_32, value >> 32)
            else:
                self._send(self, value, self._icr_high >> 24)
        elif index == Register.TIMER_INITIAL:
            self.timer.set_initial_count(value)
        elif index == Register.TIMER_DIVIDE:
            self.timer.set_divide(value)
        elif index == Register.SELF_IPI:
            self.accept(value & 0xFF)
        elif index == Register.ICR_HIGH:
            self._icr_high = value & 0xFF000000
        elif index == Register.ESR:
            self._esr, self._errors = self._errors, 0
        elif index in self._lvt:
            self._write_lvt(index, value)
        else:
            if index == Register.TPR:
                self._set_task_priority(value & 0xFF)
            elif index == Register.LDR:
                self._ldr = value & 0xFF000000
            elif index == Register.DFR:
                self._dfr = value | 0x0FFFFFFF
            elif index == Register.SVR:
                self._svr = value & 0x1FF
                if not value & _SVR_ENABLE:
                    for entry in self._lvt:
                        self._lvt[entry] |= _MASKED
            self._update()

    def _write_lvt(self, index: int, value: int) -> None:
        value &= _LVT_WRITABLE[index]
        if not self._svr & _SVR_ENABLE:
            value |= _MASKED
        self._lvt[index] = value
        if index == Register.LVT_TIMER:
            self.timer.set_mode(TimerMode(value >> 17 & 3))
        self._update()

    def read_page(self, offset: int, size: int) -> int:
        """A load from the xAPIC page; there is no page in x2APIC mode or while the APIC is off."""
        ones = (1 << 8 * size) - 1
        if self.base & (BASE_ENABLE | BASE_X2APIC) != BASE_ENABLE:
            return ones
        index = offset >> 4
        if index not in _XAPIC_READABLE or (offset & 0xF) + size > 4:
            return 0
        return self._read(index) >> 8 * (offset & 0xF) & ones

    def write_page(self, offset: int, size: int, value: int) -> None:
        """A store to it; only aligned stores of 32 bits mean anything."""
        if self.base & (BASE_ENABLE | BASE_X2APIC) != BASE_ENABLE or size != 4 or offset & 0xF:
            return
        index = offset >> 4
        if index in _XAPIC_WRITABLE:
            self._write(index, value)

    def read_msr(self, index: int) -> int | None:
        """RDMSR of an x2APIC register; None is #GP."""
        if not self.x2apic or index not in _X2APIC_READABLE:
            return None
        return self._read(index)

    def write_msr(self, index: int, value: int) -> bool:
        """WRMSR; False is #GP."""
        if not self.x2apic or index not in _X2APIC_WRITABLE:
            return False
        if index != Register.ICR and value >> 32:
            return False
        # EOI and ESR take only 0 (Intel SDM volume 3, 10.12.1.2).
        if index in (Register.EOI, Register.ESR) and value:
            return False
        # It has a vector alone.
        if index == Register.SELF_IPI and value >> 8:
            return False
        self._write(index, value)
        return True

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot; what is 256 bits wide is bytes."""
        state = save_integers(self, self._SAVED)
        for name in ("irr", "isr", "tmr"):
            state[name] = state[name].to_bytes(32, "little")
        return state | {"lvt": [[index, value] for index, value in self._lvt.items()], "timer": self.timer.dump()}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot; the TSC has been restored before."""
        state = dict(state)
        for name in ("irr", "isr", "tmr"):
            state[name] = int.from_bytes(state[name], "little") & (1 << 256) - 1
        lvt = {checked_int(index): checked_int(value) for index, value in state["lvt"]}
        if lvt.keys() != _LVT_WRITABLE.keys():
            raise ValueError("other local vectors than an APIC has")
        load_integers(self, self._SAVED, state)
        self.page = self.base & _BASE_PAGE
        self._lvt = lvt
        self.timer.load(state["timer"])
        self._update()
