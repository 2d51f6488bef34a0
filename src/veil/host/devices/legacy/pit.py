# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8254 interval timer (Intel, 82C54 data sheet) and the system control port B (61h) that gates its channel 2.

Channel 0 interrupts (IRQ 0); channel 1 once refreshed memory and only counts; channel 2 made the beeps, and kernels
calibrate clocks with it. Counters are computed from the host's clock when somebody looks. Counting in BCD is not
modelled: a BCD control word counts in binary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.host.devices._state import checked_int, load_integers, save_integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus

__all__ = ["PIT_HZ", "Pit"]

PIT_HZ = 1193182
_PORT = 0x40
_CONTROL_B = 0x61
_NS = 1_000_000_000

_ACCESS_LATCH, _ACCESS_LOW, _ACCESS_HIGH, _ACCESS_BOTH = 0, 1, 2, 3
_READ_BACK = 3

_B_GATE2 = 0x01
_B_WRITABLE = 0x0F
_B_REFRESH = 0x10
_B_OUT2 = 0x20
_REFRESH_NS = 15_085


class _Channel:
    """One counter; `start_ns` is when the present count was loaded (or triggered), 0 for never."""

    SAVED = (
        "mode", "access", "count", "gate", "loaded", "write_low", "write_high_next", "read_high_next", "latch",
        "latch_bytes", "status_latch",
    )  # fmt: skip

    def __init__(self, gate: bool) -> None:
        self.mode = 3
        self.access = _ACCESS_BOTH
        #: the reload value, 1 to 65536
        self.count = 0x10000
        self.gate = gate
        self.loaded = False
        self.start_ns = 0
        self.write_low = 0
        self.write_high_next = False
        self.read_high_next = False
        self.latch = 0
        #: how many bytes of the latch are still to be read
        self.latch_bytes = 0
        #: a latched status byte, or -1
        self.status_latch = -1

    @property
    def running(self) -> bool:
        """Does it count? Modes 1 and 5 count on regardless of the gate's level."""
        return self.loaded and self.start_ns > 0 and (self.gate or self.mode in (1, 5))

    def ticks(self, now: int) -> int:
        return (now - self.start_ns) * PIT_HZ // _NS if self.running else 0

    def value(self, now: int) -> int:
        """The counting element."""
        if not self.running:
            return self.count & 0xFFFF
        ticks = self.ticks(now)
        if self.mode in (2, 3):
            left = self.count - ticks % self.count
            if self.mode == 3:
                # Mode 3 counts by two, twice in each period.
                left = self.count - 2 * ticks % self.count & ~1
            return left & 0xFFFF
        return self.count - ticks & 0xFFFF

    def out(self, now: int) -> bool:
        """The output pin."""
        if not self.loaded or not self.start_ns:
            return self.mode != 0
        ticks = self.ticks(now)
        if self.mode in (0, 1):
            return self.running and ticks >= self.count
        if not self.running:
            return True
        if self.mode == 2:
            return ticks % self.count != self.count - 1
        if self.mode == 3:
            return ticks % self.count < (self.count + 1) // 2
        return ticks != self.count

    def status(self, now: int) -> int:
        return self.out(now) << 7 | (not self.loaded) << 6 | self.access << 4 | self.mode << 1

    def set_gate(self, gate: bool, now: int) -> None:
        if gate and not self.gate and self.mode != 0 and self.mode != 4:
            # A rising gate triggers the one-shots and restarts the rate generators.
            self.start_ns = now
        elif gate and not self.gate:
            # Modes 0 and 4 go on from where the gate stopped them; that much accuracy nobody has asked for.
            self.start_ns = now
        self.gate = gate


class Pit:
    """`set_irq0(level)` is channel 0's output; `deadline_ns` is when it next rises, None if it does not."""

    def __init__(self, set_irq0: Callable[[bool], None], now_ns: Callable[[], int]) -> None:
        self._set_irq0 = set_irq0
        self._now = now_ns
        self._channels = [_Channel(True), _Channel(True), _Channel(False)]
        self._control_b = 0
        self.deadline_ns: int | None = None

    def attach(self, bus: IoBus) -> None:
        """Put the registers on a bus."""
        for number in range(3):
            bus.add_register(_PORT + number, self._reader(number), self._writer(number))
        bus.add_register(_PORT + 3, None, self._write_control)
        bus.add_register(_CONTROL_B, self._read_control_b, self._write_control_b)

    def _reader(self, number: int) -> Callable[[], int]:
        channel = self._channels[number]
        return lambda: self._read(channel)

    def _writer(self, number: int) -> Callable[[int], None]:
        channel = self._channels[number]
        return lambda value: self._write(channel, value)

    # Registers

    def _read(self, channel: _Channel) -> int:
        if channel.status_latch >= 0:
            status, channel.status_latch = channel.status_latch, -1
            return status
        if channel.latch_bytes:
            channel.latch_bytes -= 1
            value = channel.latch
            if channel.access == _ACCESS_HIGH or (channel.access == _ACCESS_BOTH and channel.latch_bytes == 0):
                return value >> 8
            return value & 0xFF
        value = channel.value(self._now())
        if channel.access == _ACCESS_BOTH:
            high, channel.read_high_next = channel.read_high_next, not channel.read_high_next
        else:
            high = channel.access == _ACCESS_HIGH
        return value >> 8 if high else value & 0xFF

    def _write(self, channel: _Channel, value: int) -> None:
        if channel.access == _ACCESS_LOW:
            self._load(channel, value)
        elif channel.access == _ACCESS_HIGH:
            self._load(channel, value << 8)
        elif channel.write_high_next:
            channel.write_high_next = False
            self._load(channel, value << 8 | channel.write_low)
        else:
            channel.write_low = value
            channel.write_high_next = True
            if channel.mode == 0:
                # In mode 0 the first byte stops the count.
                channel.loaded = False
                self._rearm(channel)

    def _load(self, channel: _Channel, count: int) -> None:
        channel.count = count or 0x10000
        now = self._now()
        # A running rate generator takes a new count at the end of its period; nobody can tell it from at once.
        if channel.mode not in (1, 5):
            channel.start_ns = now
        channel.loaded = True
        self._rearm(channel)

    def _write_control(self, value: int) -> None:
        number = value >> 6
        if number == _READ_BACK:
            self._read_back(value)
            return
        channel = self._channels[number]
        access = value >> 4 & 3
        if access == _ACCESS_LATCH:
            self._latch(channel, self._now())
            return
        mode = value >> 1 & 7
        channel.mode = mode - 4 if mode > 5 else mode
        channel.access = access
        channel.loaded = False
        channel.start_ns = 0
        channel.write_high_next = channel.read_high_next = False
        channel.latch_bytes = 0
        channel.status_latch = -1
        self._rearm(channel)

    def _read_back(self, value: int) -> None:
        now = self._now()
        for number, channel in enumerate(self._channels):
            if not value & 2 << number:
                continue
            if not value & 0x20:
                self._latch(channel, now)
            if not value & 0x10 and channel.status_latch < 0:
                channel.status_latch = channel.status(now)

    @staticmethod
    def _latch(channel: _Channel, now: int) -> None:
        if not channel.latch_bytes:
            channel.latch = channel.value(now)
            channel.latch_bytes = 2 if channel.access == _ACCESS_BOTH else 1

    def _read_control_b(self) -> int:
        now = self._now()
        value = self._control_b
        if now // _REFRESH_NS & 1:
            value |= _B_REFRESH
        if self._channels[2].out(now):
            value |= _B_OUT2
        return value

    def _write_control_b(self, value: int) -> None:
        self._control_b = value & _B_WRITABLE
        self._channels[2].set_gate(bool(value & _B_GATE2), self._now())

    # Channel 0's interrupt

    def _rearm(self, channel: _Channel) -> None:
        if channel is not self._channels[0]:
            return
        now = self._now()
        # The edge to come needs a low line before it, whatever the pin of the real chip does meanwhile.
        self._set_irq0(False)
        self.deadline_ns = self._next_rise(channel, now)

    @staticmethod
    def _next_rise(channel: _Channel, now: int) -> int | None:
        if not channel.running or channel.mode in (1, 5):
            return None
        period = channel.count
        if channel.mode in (2, 3):
            return channel.start_ns - (-(channel.ticks(now) // period + 1) * period * _NS // PIT_HZ)
        when = channel.start_ns - (-period * _NS // PIT_HZ)
        return when if when > now else None

    def tick(self, now: int) -> None:
        """Raise IRQ 0 if its time has come; periods that were missed are one interrupt."""
        deadline = self.deadline_ns
        if deadline is None or now < deadline:
            return
        self._set_irq0(False)
        self._set_irq0(True)
        self.deadline_ns = self._next_rise(self._channels[0], now)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot; times as how long ago they were."""
        now = self._now()
        return {
            "channels": [
                save_integers(channel, _Channel.SAVED) | {"age_ns": now - channel.start_ns if channel.start_ns else -1}
                for channel in self._channels
            ],
            "control_b": self._control_b,
        }

    def load(self, state: dict[str, Any]) -> None:
        now = self._now()
        for channel, saved in zip(self._channels, state["channels"], strict=True):
            load_integers(channel, _Channel.SAVED, saved)
            if not 1 <= channel.count <= 0x10000:
                raise ValueError(f"a count of {channel.count}")
            age = checked_int(saved["age_ns"])
            channel.start_ns = now - age if age >= 0 else 0
        self._control_b = checked_int(state["control_b"])
        self.deadline_ns = self._next_rise(self._channels[0], now)
