# SPDX-License-Identifier: GPL-2.0-or-later
"""The real-time clock and CMOS memory at ports 70h and 71h (Motorola, MC146818A data sheet): the host's wall clock.

The guest sees the host's time, moved by what it once set the clock to; so the clock is right after a snapshot too.
"""

from __future__ import annotations

import calendar
import time
from typing import TYPE_CHECKING, Any

from veil.host.devices._state import checked_int

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus

__all__ = ["RTC_IRQ", "Rtc"]

RTC_IRQ = 8
_PORT = 0x70
_SIZE = 128
_NS = 1_000_000_000

_SECONDS, _MINUTES, _HOURS = 0, 2, 4
_ALARM_SECONDS, _ALARM_MINUTES, _ALARM_HOURS = 1, 3, 5
_WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY = 6, 7, 8, 9, 0x32
_TIME_REGISTERS = frozenset({_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY})
_A, _B, _C, _D = 10, 11, 12, 13

_A_UPDATE = 0x80
_A_RESET = 0x26
_B_24_HOURS = 0x02
_B_BINARY = 0x04
_B_UPDATE_IRQ = 0x10
_B_ALARM_IRQ = 0x20
_B_PERIODIC_IRQ = 0x40
_B_SET = 0x80
_C_UPDATE, _C_ALARM, _C_PERIODIC, _C_IRQ = 0x10, 0x20, 0x40, 0x80
_D_VALID = 0x80
_PM = 0x80
_DONT_CARE = 0xC0

#: 'Update in progress' is seen so long before the second changes.
_UPDATE_NS = 244_000


class Rtc:
    """`set_irq(level)` drives IRQ 8; `wall_ns()` is the time since 1970 in nanoseconds, UTC."""

    def __init__(
        self, set_irq: Callable[[bool], None], now_ns: Callable[[], int], wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._set_irq = set_irq
        self._now = now_ns
        self._wall = wall_ns
        self._index = 0
        self._cmos = bytearray(_SIZE)
        self._cmos[_A] = _A_RESET
        self._cmos[_B] = _B_24_HOURS
        #: what the guest's clock is ahead of the host's
        self._offset_ns = 0
        #: the time registers while SET stops the clock
        self._frozen: dict[int, int] | None = None
        self.deadline_ns: int | None = None

    def attach(self, bus: IoBus) -> None:
        """Put the registers on a bus."""
        bus.add_register(_PORT, lambda: 0xFF, self._write_index)
        bus.add_register(_PORT + 1, self._read, self._write)

    # Time and its encodings

    def _guest_ns(self) -> int:
        return self._wall() + self._offset_ns

    def _encode(self, value: int) -> int:
        return value if self._cmos[_B] & _B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._cmos[_B] & _B_BINARY else (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self._cmos[_B] & _B_24_HOURS:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._cmos[_B] & _B_24_HOURS:
            return self._decode(value)
        return self._decode(value & ~_PM) % 12 + (12 if value & _PM else 0)

    def _time_registers(self) -> dict[int, int]:
        now = time.gmtime(self._guest_ns() // _NS)
        return {
            _SECONDS: self._encode(now.tm_sec),
            _MINUTES: self._encode(now.tm_min),
            _HOURS: self._encode_hour(now.tm_hour),
            _WEEKDAY: self._encode((now.tm_wday + 1) % 7 + 1),
            _DAY: self._encode(now.tm_mday),
            _MONTH: self._encode(now.tm_mon),
            _YEAR: self._encode(now.tm_year % 100),
            _CENTURY: self._encode(now.tm_year // 100),
        }

    def _set_time(self, registers: dict[int, int]) -> None:
        decode = self._decode
        year = decode(registers[_CENTURY]) * 100 + decode(registers[_YEAR])
        month, day = decode(registers[_MONTH]), decode(registers[_DAY])
        hour, minute, second = self._decode_hour(registers[_HOURS]), decode(registers[_MINUTES]), decode(registers[0])
        # The chip keeps nonsense; this clock goes on as it was.
        if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31):
            return
        if not (hour < 24 and minute < 60 and second < 60):
            return
        wanted = calendar.timegm((year, month, day, hour, minute, second)) * _NS
        self._offset_ns = wanted - self._wall()

    # Registers

    def _write_index(self, value: int) -> None:
        # Bit 7 masks NMI on a PC; there are none.
        self._index = value & _SIZE - 1

    def _read(self) -> int:
        index = self._index
        if index in _TIME_REGISTERS:
            return (self._frozen if self._frozen is not None else self._time_registers())[index]
        if index == _A:
            updating = self._frozen is None and self._guest_ns() % _NS >= _NS - _UPDATE_NS
            return self._cmos[_A] & ~_A_UPDATE | (_A_UPDATE if updating else 0)
        if index == _C:
            value = self._cmos[_C]
            self._cmos[_C] = 0
            self._set_irq(False)
            return value
        return _D_VALID if index == _D else self._cmos[index]

    def _write(self, value: int) -> None:
        index = self._index
        if index in _TIME_REGISTERS:
            registers = self._frozen if self._frozen is not None else self._time_registers()
            registers[index] = value
            if self._frozen is None:
                self._set_time(registers)
        elif index == _B:
            self._write_b(value)
        elif index not in (_C, _D):
            self._cmos[index] = value & ~_A_UPDATE if index == _A else value
            self._rearm()

    def _write_b(self, value: int) -> None:
        if value & _B_SET:
            value &= ~_B_UPDATE_IRQ
            if self._frozen is None:
                self._frozen = self._time_registers()
        # The registers were written in the encoding that held while the clock stood.
        elif self._frozen is not None:
            frozen, self._frozen = self._frozen, None
            self._cmos[_B] = value
            self._set_time(frozen)
        self._cmos[_B] = value
        self._flag(0)
        self._rearm()

    # Interrupts

    def _period_ns(self) -> int:
        rate = self._cmos[_A] & 0xF
        if not rate:
            return 0
        return _NS * (1 << (rate + 6 if rate < 3 else rate - 1)) // 32768

    def _rearm(self) -> None:
        enabled = self._cmos[_B]
        waits = []
        if enabled & (_B_UPDATE_IRQ | _B_ALARM_IRQ) and self._frozen is None:
            waits.append(-self._guest_ns() % _NS or _NS)
        period = self._period_ns()
        if enabled & _B_PERIODIC_IRQ and period:
            waits.append(-self._now() % period or period)
        self.deadline_ns = self._now() + min(waits) if waits else None

    def tick(self, now: int) -> None:
        """Raise IRQ 8 for a second that has begun, an alarm or a period."""
        if self.deadline_ns is None or now < self.deadline_ns:
            return
        enabled = self._cmos[_B]
        flags = 0
        # The deadline was the start of a second or the end of a period, whichever came first; a wall clock that was
        # set meanwhile makes one second too many or too few.
        if enabled & (_B_UPDATE_IRQ | _B_ALARM_IRQ) and self._frozen is None and self._guest_ns() % _NS < _NS // 2:
            flags |= _C_UPDATE
            if self._alarm_matches():
                flags |= _C_ALARM
        if enabled & _B_PERIODIC_IRQ:
            flags |= _C_PERIODIC
        self._flag(flags)
        self._rearm()

    def _alarm_matches(self) -> bool:
        now = self._time_registers()
        pairs = ((_ALARM_SECONDS, _SECONDS), (_ALARM_MINUTES, _MINUTES), (_ALARM_HOURS, _HOURS))
        return all(self._cmos[alarm] in (now[clock],) or self._cmos[alarm] >= _DONT_CARE for alarm, clock in pairs)

    def _flag(self, flags: int) -> None:
        self._cmos[_C] |= flags
        # The flags of register C and the enables of register B have the same places.
        if self._cmos[_C] & self._cmos[_B] & (_C_UPDATE | _C_ALARM | _C_PERIODIC):
            self._cmos[_C] |= _C_IRQ
            self._set_irq(True)
        else:
            self._cmos[_C] &= ~_C_IRQ
            self._set_irq(False)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "cmos": bytes(self._cmos),
            "offset_ns": self._offset_ns,
            "frozen": None if self._frozen is None else [[key, value] for key, value in sorted(self._frozen.items())],
        }

    def load(self, state: dict[str, Any]) -> None:
        cmos, frozen = bytearray(state["cmos"]), state["frozen"]
        if len(cmos) != _SIZE:
            raise ValueError(f"a CMOS of {len(cmos)} bytes")
        self._index = checked_int(state["index"]) & _SIZE - 1
        self._cmos = cmos
        self._offset_ns = checked_int(state["offset_ns"])
        self._frozen = None if frozen is None else {int(key): int(value) for key, value in frozen}
        self._rearm()
