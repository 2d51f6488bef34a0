# SPDX-License-Identifier: GPL-2.0-or-later
"""The two 8259s."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from veil.host.devices import Pic
from veil.host.devices.bus import IoBus


class Board:
    def __init__(self) -> None:
        self.pic = Pic()
        self.bus = IoBus()
        self.pic.attach(self.bus)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bus.write(port, 1, value)

    def initialise(self, master_icw4: int = 1) -> None:
        """As Linux does (arch/x86/kernel/i8259.c, init_8259A), all inputs open."""
        self.out(0x20, 0x11)
        self.out(0x21, 0x30, 0x04, master_icw4)
        self.out(0xA0, 0x11)
        self.out(0xA1, 0x38, 0x02, 0x01)
        self.out(0x21, 0x00)
        self.out(0xA1, 0x00)

    def isr(self, port: int) -> int:
        self.out(port, 0x0B)
        return self.bus.read(port, 1)

    def irr(self, port: int) -> int:
        self.out(port, 0x0A)
        return self.bus.read(port, 1)


def board() -> Board:
    result = Board()
    result.initialise()
    return result


def test_masked_after_initialisation_by_linux() -> None:
    b = board()
    b.out(0x21, 0xFF)
    assert b.bus.read(0x21, 1) == 0xFF
    b.pic.set_irq(4, True)
    assert b.pic.vector is None
    b.out(0x21, 0xEF)
    assert b.pic.vector == 0x34


def test_edge_acknowledge_and_eoi() -> None:
    b = board()
    b.pic.set_irq(4, True)
    assert b.pic.acknowledge() == 0x34
    assert b.pic.vector is None
    assert b.isr(0x20) == 0x10
    b.pic.set_irq(4, True)
    b.out(0x20, 0x64)
    assert b.pic.vector is None, "a level that stays is not a new edge"
    b.pic.set_irq(4, False)
    b.pic.set_irq(4, True)
    assert b.pic.vector == 0x34


def test_an_edge_that_goes_away_is_forgotten() -> None:
    b = board()
    b.pic.set_irq(4, True)
    b.pic.set_irq(4, False)
    assert b.pic.vector is None
    assert b.pic.acknowledge() == 0x37, "the spurious vector"
    assert b.isr(0x20) == 0


def test_slave_interrupts_go_through_the_cascade() -> None:
    b = board()
    b.pic.set_irq(8, True)
    b.pic.set_irq(10, True)
    assert b.pic.acknowledge() == 0x38
    assert b.isr(0x20) == 4
    assert b.isr(0xA0) == 1
    assert b.pic.vector is None
    b.out(0xA0, 0x60)
    b.out(0x20, 0x62)
    assert b.pic.acknowledge() == 0x3A
    b.out(0xA0, 0x20)
    b.out(0x20, 0x20)
    assert b.pic.vector is None


def test_level_triggered_inputs_ask_again() -> None:
    b = board()
    b.out(0x4D1, 0x04)
    assert b.bus.read(0x4D1, 1) == 0x04
    b.pic.set_irq(10, True)
    assert b.pic.acknowledge() == 0x3A
    b.out(0xA0, 0x20)
    b.out(0x20, 0x20)
    assert b.pic.vector == 0x3A
    b.pic.set_irq(10, False)
    assert b.pic.vector is None


def test_timer_and_cascade_stay_edge_triggered() -> None:
    b = board()
    b.out(0x4D0, 0xFF)
    b.out(0x4D1, 0xFF)
    assert (b.bus.read(0x4D0, 1), b.bus.read(0x4D1, 1)) == (0xF8, 0xDE)


def test_automatic_eoi() -> None:
    b = Board()
    b.initialise(master_icw4=3)
    b.pic.set_irq(1, True)
    assert b.pic.acknowledge() == 0x31
    assert b.isr(0x20) == 0
    b.pic.set_irq(5, True)
    assert b.pic.vector == 0x35


def test_rotation() -> None:
    b = board()
    b.pic.set_irq(1, True)
    b.pic.acknowledge()
    b.pic.set_irq(1, False)
    b.out(0x20, 0xA0)
    b.pic.set_irq(1, True)
    b.pic.set_irq(3, True)
    assert b.pic.acknowledge() == 0x33, "input 1 is the lowest now"


def test_special_mask_mode() -> None:
    b = board()
    b.pic.set_irq(1, True)
    b.pic.acknowledge()
    b.pic.set_irq(5, True)
    assert b.pic.vector is None
    b.out(0x21, 0x02)
    b.out(0x20, 0x68)
    assert b.pic.vector == 0x35


def test_poll() -> None:
    b = board()
    b.pic.set_irq(3, True)
    b.out(0x20, 0x0C)
    assert b.bus.read(0x20, 1) == 0x83
    assert b.isr(0x20) == 8
    b.out(0x20, 0x0C)
    assert b.bus.read(0x20, 1) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, -1, -2]), st.integers(0, 255)), max_size=60
    )
)
def test_any_programming_keeps_its_word(steps: list[tuple[int, int]]) -> None:
    """The vector that is announced is the vector that an acknowledge gives, and a snapshot tells the same."""
    b = board()
    for port, value in steps:
        if port >= 0:
            b.out(port, value)
        elif port == -1:
            if (value & 15) != 2:
                b.pic.set_irq(value & 15, bool(value & 16))
        else:
            expected = b.pic.vector
            vector = b.pic.acknowledge()
            assert expected in (None, vector)
        copy = Pic()
        copy.load(b.pic.dump())
        assert copy.vector == b.pic.vector
