# SPDX-License-Identifier: GPL-2.0-or-later
"""The CMOS clock."""

from __future__ import annotations

import calendar

import pytest

from tests.host.devices.fakes import Clock
from veil.host.devices import Rtc
from veil.host.devices.bus import IoBus


class Board:
    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.wall = calendar.timegm((2026, 2, 28, 23, 59, 58)) * 10**9
        self.level = False
        self.rtc = Rtc(self._irq, self.clock.now_ns, self.clock.wall_ns)
        self.bus = IoBus()
        self.rtc.attach(self.bus)

    def _irq(self, level: bool) -> None:
        self.level = level

    def get(self, index: int) -> int:
        self.bus.write(0x70, 1, index)
        return self.bus.read(0x71, 1)

    def put(self, index: int, value: int) -> None:
        self.bus.write(0x70, 1, index)
        self.bus.write(0x71, 1, value)

    def time(self) -> tuple[int, ...]:
        return tuple(self.get(index) for index in (0x32, 9, 8, 7, 4, 2, 0))

    def run(self, nanoseconds: int) -> int:
        """Returns how often IRQ 8 rose; each is served by reading register C."""
        end, count = self.clock.time + nanoseconds, 0
        while (deadline := self.rtc.deadline_ns) is not None and deadline <= end:
            self.clock.advance(deadline - self.clock.time)
            self.rtc.tick(self.clock.time)
            if self.level:
                count += 1
                self.get(12)
        self.clock.advance(end - self.clock.time)
        return count


@pytest.fixture
def board() -> Board:
    return Board()


def test_time_in_bcd_and_binary(board: Board) -> None:
    assert board.time() == (0x20, 0x26, 0x02, 0x28, 0x23, 0x59, 0x58)
    assert board.get(13) == 0x80
    board.put(11, 0x06)
    assert board.time() == (20, 26, 2, 28, 23, 59, 58)
    board.clock.advance(2 * 10**9)
    assert board.time() == (20, 26, 3, 1, 0, 0, 0)
    assert board.get(6) == 1, "a Sunday"


def test_twelve_hours(board: Board) -> None:
    board.put(11, 0x00)
    assert board.get(4) == 0x91
    board.clock.advance(2 * 10**9)
    assert board.get(4) == 0x12


def test_update_in_progress_is_short(board: Board) -> None:
    assert not board.get(10) & 0x80
    board.clock.advance(10**9 - 100_000)
    assert board.get(10) & 0x80


def test_setting_the_clock(board: Board) -> None:
    # mc146818_set_time: stop, write, start.
    board.put(11, 0x82)
    for index, value in ((9, 0x30), (8, 0x12), (7, 0x24), (4, 0x18), (2, 0x30), (0, 0x15)):
        board.put(index, value)
    board.clock.advance(10**10)
    assert board.get(0) == 0x15, "it stands"
    board.put(11, 0x02)
    assert board.time() == (0x20, 0x30, 0x12, 0x24, 0x18, 0x30, 0x15)
    board.clock.advance(5 * 10**9)
    assert board.get(0) == 0x20


def test_nonsense_is_not_taken(board: Board) -> None:
    board.put(11, 0x82)
    board.put(8, 0x99)
    board.put(11, 0x02)
    assert board.get(8) == 0x02


def test_update_interrupt_each_second(board: Board) -> None:
    board.put(11, 0x12)
    assert board.run(5 * 10**9) == 5
    board.put(11, 0x02)
    assert board.run(5 * 10**9) == 0


def test_alarm(board: Board) -> None:
    board.put(5, 0xFF)
    board.put(3, 0xFF)
    board.put(1, 0x05)
    board.put(11, 0x22)
    assert board.run(60 * 10**9) == 1


def test_periodic_interrupt(board: Board) -> None:
    board.put(10, 0x26)
    board.put(11, 0x42)
    assert board.run(10**9) == 1024


def test_memory_is_memory(board: Board) -> None:
    board.put(0x40, 0x77)
    assert board.get(0x40) == 0x77


def test_state_survives_and_time_goes_on(board: Board) -> None:
    board.put(11, 0x82)
    board.put(9, 0x40)
    board.put(11, 0x02)
    board.put(0x50, 9)
    other = Board()
    other.rtc.load(board.rtc.dump())
    other.clock.advance(3600 * 10**9)
    assert other.get(9) == 0x40
    assert other.get(0x50) == 9
    assert other.get(4) == 0x00
