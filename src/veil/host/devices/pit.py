# SPDX-License-Identifier: GPL-2.0-or-later
"""An 8254 interval timer: channel 0 raises IRQ 0, channel 2 is gated and read by port 61h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Pit"]

_HZ = 1_193_182
_NS = 1_000_000_000


class _Channel:
    def __init__(self) -> None:
        self.mode = 0
        self.access = 3
        self.reload = 0
        self.low: int | None = None
        self.high_next = False
        self.latched: int | None = None
        self.start_ns = 0
        self.running = False

    def period_ns(self) -> int:
        return (self.reload or 0x10000) * _NS // _HZ

    def count(self, now: int) -> int:
        if not self.running:
            return self.reload
        ticks = (now - self.start_ns) * _HZ // _NS
        reload = self.reload or 0x10000
        if self.mode in (2, 3):
            return reload - ticks % reload
        return (reload - ticks) & 0xFFFF


class Pit:
    """Ports 40h to 43h and 61h."""

    PORTS = (0x40, 0x41, 0x42, 0x43, 0x61)

    def __init__(self, now_ns: Callable[[], int], tick: Callable[[], None]) -> None:
        self._now = now_ns
        self._tick = tick
        self._channels = [_Channel() for _ in range(3)]
        self._gate = 0
        self._due: int | None = None

    def next_deadline_ns(self) -> int | None:
        """When channel 0 fires."""
        return self._due

    def expire(self, now: int) -> None:
        """Fire what is due; a late periodic tick is given once."""
        if self._due is None or now < self._due:
            return
        self._tick()
        channel = self._channels[0]
        if channel.mode in (2, 3):
            period = channel.period_ns()
            self._due += period * (1 + (now - self._due) // period)
        else:
            self._due = None

    def _start(self, index: int) -> None:
        channel = self._channels[index]
        channel.start_ns = self._now()
        channel.running = index != 2 or bool(self._gate & 1)
        if index == 0:
            self._due = channel.start_ns + channel.period_ns()

    def read(self, port: int, size: int) -> int:
        """IN."""
        if port == 0x61:
            channel = self._channels[2]
            done = channel.running and self._now() >= channel.start_ns + channel.period_ns()
            return self._gate & 3 | (0x20 if done else 0)
        if port == 0x43:
            return 0
        channel = self._channels[port - 0x40]
        value = channel.count(self._now()) if channel.latched is None else channel.latched
        if channel.access == 3:
            channel.high_next = not channel.high_next
            if channel.high_next:
                channel.latched = value
                return value & 0xFF
            channel.latched = None
            return value >> 8 & 0xFF
        channel.latched = None
        return value & 0xFF if channel.access == 1 else value >> 8 & 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        value &= 0xFF
        if port == 0x61:
            rising = value & 1 and not self._gate & 1
            self._gate = value
            if rising:
                self._start(2)
            return
        if port == 0x43:
            index = value >> 6
            if index == 3:
                return
            channel = self._channels[index]
            if value & 0x30 == 0:
                channel.latched = channel.count(self._now())
                return
            channel.access = value >> 4 & 3
            mode = value >> 1 & 7
            channel.mode = mode & 3 if mode > 5 else mode
            channel.low = None
            channel.high_next = channel.running = False
            if index == 0:
                self._due = None
            return
        index = port - 0x40
        channel = self._channels[index]
        if channel.access == 3 and channel.low is None:
            channel.low = value
            return
        if channel.access == 3:
            channel.reload = (channel.low or 0) | value << 8
            channel.low = None
        else:
            channel.reload = value if channel.access == 1 else value << 8
        self._start(index)

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {"channels": [dict(vars(channel)) for channel in self._channels], "gate": self._gate, "due": self._due}

    def load(self, state: dict[str, Any], shift_ns: int = 0) -> None:
        """From a snapshot; `shift_ns` is how much later the clock stands now."""
        for channel, saved in zip(self._channels, state["channels"], strict=True):
            vars(channel).update(saved)
            channel.start_ns += shift_ns
        self._gate = state["gate"]
        self._due = None if state["due"] is None else state["due"] + shift_ns
