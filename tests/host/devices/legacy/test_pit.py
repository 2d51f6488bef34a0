# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8254."""

from __future__ import annotations

import pytest

from tests.host.devices.fakes import Clock
from veil.host.devices import Pit
from veil.host.devices.bus import IoBus
from veil.host.devices.legacy.pit import PIT_HZ


class Board:
    def __init__(self) -> None:
        self.clock = Clock()
        self.edges = 0
        self.level = False
        self.pit = Pit(self._irq, self.clock.now_ns)
        self.bus = IoBus()
        self.pit.attach(self.bus)

    def _irq(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bus.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.bus.read(port, 1)

    def run(self, nanoseconds: int) -> None:
        """Let time pass as the run loop would: from deadline to deadline."""
        end = self.clock.time + nanoseconds
        while (deadline := self.pit.deadline_ns) is not None and deadline <= end:
            self.clock.advance(deadline - self.clock.time)
            self.pit.tick(self.clock.time)
        self.clock.advance(end - self.clock.time)


@pytest.fixture
def board() -> Board:
    return Board()


def test_quiet_after_reset(board: Board) -> None:
    board.run(10**9)
    assert board.edges == 0


def test_periodic_rate(board: Board) -> None:
    # clockevent_i8253: mode 2, HZ 250.
    board.out(0x43, 0x34)
    latch = PIT_HZ // 250
    board.out(0x40, latch & 0xFF, latch >> 8)
    board.run(10**9)
    assert board.edges == 250
    board.out(0x43, 0x30)
    assert not board.level
    board.run(10**9)
    assert board.edges == 250


def test_missed_periods_are_one_interrupt(board: Board) -> None:
    board.out(0x43, 0x34)
    board.out(0x40, 0xFF, 0x00)
    board.clock.advance(10**9)
    board.pit.tick(board.clock.time)
    assert board.edges == 1
    assert board.pit.deadline_ns is not None
    assert board.clock.time < board.pit.deadline_ns <= board.clock.time + 255 * 10**9 // PIT_HZ + 1


def test_one_shot(board: Board) -> None:
    board.out(0x43, 0x38)
    board.out(0x40, 0xA9, 0x04)  # about 1 ms
    board.run(990_000)
    assert board.edges == 0
    board.run(20_000)
    assert board.edges == 1
    board.run(10**9)
    assert board.edges == 1


def test_counter_read_back(board: Board) -> None:
    board.out(0x43, 0x34)
    board.out(0x40, 0x00, 0x80)
    board.clock.advance(10_000_000)
    board.out(0x43, 0x00)
    latched = board.read(0x40) | board.read(0x40) << 8
    assert latched == 0x8000 - 10_000_000 * PIT_HZ // 10**9
    board.out(0x43, 0xC2)  # status and count of channel 0
    assert board.read(0x40) & 0x3F == 0x34
    assert board.read(0x40) | board.read(0x40) << 8 == latched


def test_channel_2_calibrates_clocks(board: Board) -> None:
    # arch/x86/kernel/tsc.c, pit_calibrate_tsc: gate on, speaker off, mode 0, wait for OUT2.
    board.out(0x61, board.read(0x61) & ~2 | 1)
    board.out(0x43, 0xB0)
    latch = PIT_HZ // 100
    board.out(0x42, latch & 0xFF, latch >> 8)
    assert not board.read(0x61) & 0x20
    board.clock.advance(9_990_000)
    assert not board.read(0x61) & 0x20
    board.clock.advance(20_000)
    assert board.read(0x61) & 0x20
    assert board.pit.deadline_ns is None


def test_gate_stops_channel_2(board: Board) -> None:
    board.out(0x61, 0)
    board.out(0x43, 0xB0)
    board.out(0x42, 0x10, 0x00)
    board.clock.advance(10**9)
    assert not board.read(0x61) & 0x20


def test_quick_calibration_sees_the_high_byte_fall(board: Board) -> None:
    # arch/x86/kernel/tsc.c, quick_pit_calibrate: reads low, high, low, high without latching.
    board.out(0x61, 1)
    board.out(0x43, 0xB0)
    board.out(0x42, 0xFF, 0xFF)
    highs = []
    for _ in range(10):
        board.read(0x42)
        highs.append(board.read(0x42))
        board.clock.advance(256 * 10**9 // PIT_HZ + 1)
    assert highs == list(range(0xFF, 0xFF - 10, -1))


def test_the_refresh_bit_toggles(board: Board) -> None:
    seen = set()
    for _ in range(10):
        seen.add(board.read(0x61) & 0x10)
        board.clock.advance(15_100)
    assert seen == {0, 0x10}


def test_state_survives_in_another_process(board: Board) -> None:
    board.out(0x43, 0x34)
    board.out(0x40, 0x00, 0x40)
    board.run(5_000_000)
    other = Board()
    other.clock.time = 77_000_000_000
    other.pit.load(board.pit.dump())
    assert board.pit.deadline_ns is not None
    assert other.pit.deadline_ns is not None
    left = board.pit.deadline_ns - board.clock.time
    assert abs(other.pit.deadline_ns - other.clock.time - left) <= 1
    for b in (board, other):
        b.out(0x43, 0x00)
    assert board.read(0x40) | board.read(0x40) << 8 == other.read(0x40) | other.read(0x40) << 8
