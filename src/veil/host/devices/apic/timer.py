# SPDX-License-Identifier: GPL-2.0-or-later
"""The timer of a local APIC: one-shot, periodic and TSC-deadline (APM volume 2, 16.4.1; Intel SDM volume 3, 10.5.4)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Protocol

from veil.host.devices._state import checked_int, load_integers, save_integers

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ApicTimer", "Clock", "TimerMode"]

#: The timer counts at 1 GHz before its divider.
_BUS_NS = 1
#: A guest must not be able to keep the host busy with a timer that never rests.
_SHORTEST_PERIOD_NS = 100_000
#: No deadline is further away (a century): what a guest asks for beyond never comes.
_FOREVER_NS = 100 * 365 * 86400 * 10**9


class Clock(Protocol):
    """Time as devices see it."""

    @property
    def now_ns(self) -> Callable[[], int]:
        """The host's monotonic clock."""

    @property
    def tsc(self) -> Callable[[], int]:
        """The guest's time stamp counter now."""

    @property
    def tsc_khz(self) -> int:
        """How fast it counts."""


class TimerMode(enum.IntEnum):
    """LVT timer register, bits 18:17."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2
    RESERVED = 3


class ApicTimer:
    """`deadline_ns` is when it fires next, None if it does not. The owner calls `fire` then."""

    _SAVED = ("mode", "initial_count", "divide_register", "deadline_tsc")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.mode = int(TimerMode.ONE_SHOT)
        self.initial_count = 0
        self.divide_register = 0
        self.deadline_tsc = 0
        self.deadline_ns: int | None = None

    def reset(self) -> None:
        """After INIT."""
        self.mode = int(TimerMode.ONE_SHOT)
        self.initial_count = self.divide_register = self.deadline_tsc = 0
        self.deadline_ns = None

    @property
    def _tick_ns(self) -> int:
        code = self.divide_register & 3 | self.divide_register >> 1 & 4
        return _BUS_NS << (code + 1 & 7)

    def set_mode(self, mode: int) -> None:
        """A write of the LVT; between deadline mode and the others everything is disarmed."""
        if mode == self.mode:
            return
        if TimerMode.TSC_DEADLINE in (mode, self.mode) or mode == TimerMode.RESERVED:
            self.deadline_ns = None
            self.initial_count = 0
            self.deadline_tsc = 0
        self.mode = mode

    def set_divide(self, value: int) -> None:
        """A write of the divide configuration register: the count that is left goes on at the new rate."""
        left = self.current_count()
        self.divide_register = value & 0xB
        if self.deadline_ns is not None and self.mode != TimerMode.TSC_DEADLINE:
            self.deadline_ns = self._clock.now_ns() + left * self._tick_ns

    def set_initial_count(self, value: int) -> None:
        """Start counting down; 0 stops. Ignored in TSC-deadline mode."""
        if self.mode == TimerMode.TSC_DEADLINE:
            return
        self.initial_count = value
        self.deadline_ns = self._clock.now_ns() + value * self._tick_ns if value else None

    def set_deadline(self, tsc: int) -> None:
        """A write of IA32_TSC_DEADLINE; 0 disarms. Ignored in the other modes."""
        if self.mode != TimerMode.TSC_DEADLINE:
            return
        self.deadline_tsc = tsc
        if not tsc:
            self.deadline_ns = None
            return
        clock = self._clock
        left_ns = (tsc - clock.tsc()) * 1_000_000 // clock.tsc_khz
        self.deadline_ns = clock.now_ns() + left_ns if left_ns < _FOREVER_NS else None

    def current_count(self) -> int:
        """The current count register."""
        if self.deadline_ns is None or self.mode == TimerMode.TSC_DEADLINE:
            return 0
        left = max(0, self.deadline_ns - self._clock.now_ns())
        return min(-(-left // self._tick_ns), self.initial_count)

    def fire(self, now: int) -> bool:
        """Is the deadline past? Then the next one is set, if there is one; periods that were missed are one."""
        deadline = self.deadline_ns
        if deadline is None or now < deadline:
            return False
        if self.mode == TimerMode.PERIODIC and self.initial_count:
            period = max(self.initial_count * self._tick_ns, _SHORTEST_PERIOD_NS)
            self.deadline_ns = deadline + ((now - deadline) // period + 1) * period
        else:
            self.deadline_ns = None
            self.deadline_tsc = 0
        return True

    def dump(self) -> dict[str, Any]:
        """For a snapshot: how long to go, or the TSC that is waited for."""
        left = -1 if self.deadline_ns is None else max(0, self.deadline_ns - self._clock.now_ns())
        return save_integers(self, self._SAVED) | {"left_ns": left}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot; the TSC has been restored before."""
        left = checked_int(state["left_ns"])
        load_integers(self, self._SAVED, state)
        if self.mode == TimerMode.TSC_DEADLINE:
            self.set_deadline(self.deadline_tsc)
        else:
            self.deadline_ns = self._clock.now_ns() + left if left >= 0 else None
