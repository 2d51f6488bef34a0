# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8250, driven as Linux' driver does."""

from __future__ import annotations

import pytest

from veil.host.devices import Serial8250
from veil.host.devices.bus import IoBus

THR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(0x3F8, 0x400)


class Line:
    """An interrupt line; counts the rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def __call__(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level


class Uart:
    def __init__(self) -> None:
        self.line = Line()
        self.device = Serial8250(self.line)
        self.sent = bytearray()
        self.device.output = self.sent.extend
        self.bus = IoBus()
        self.device.attach(self.bus)

    def read(self, port: int) -> int:
        return self.bus.read(port, 1)

    def write(self, port: int, value: int) -> None:
        self.bus.write(port, 1, value)


@pytest.fixture
def uart() -> Uart:
    return Uart()


def test_output_by_polling(uart: Uart) -> None:
    for byte in b"hello":
        assert uart.read(LSR) & 0x60 == 0x60
        uart.write(THR, byte)
    assert uart.sent == b"hello"
    assert uart.line.edges == 0


def test_detected_as_a_16550a(uart: Uart) -> None:
    # drivers/tty/serial/8250/8250_port.c, autoconfig.
    uart.write(IER, 0)
    assert uart.read(IER) == 0
    uart.write(IER, 0x0F)
    assert uart.read(IER) == 0x0F
    uart.write(MCR, 0x10 | 0x0A)
    assert uart.read(MSR) & 0xF0 == 0x90
    uart.write(MCR, 0)
    uart.write(IIR, 1)
    assert uart.read(IIR) >> 6 == 3
    uart.write(SCR, 0x5A)
    assert uart.read(SCR) == 0x5A


def test_divisor_latch(uart: Uart) -> None:
    uart.write(LCR, 0x83)
    uart.write(THR, 0x01)
    uart.write(IER, 0x02)
    assert (uart.read(THR), uart.read(IER)) == (1, 2)
    uart.write(LCR, 0x03)
    assert uart.read(IER) == 0
    assert uart.sent == b""


def test_enabling_the_transmitter_interrupt_raises_it_each_time(uart: Uart) -> None:
    # serial8250_THRE_test: a UART that fails it is driven by a timer instead.
    uart.write(MCR, 0x08)
    for _ in range(2):
        uart.write(IER, 2)
        assert uart.line.level
        assert uart.read(IIR) == 2
        assert not uart.line.level
        assert uart.read(IIR) == 1
        uart.write(IER, 0)


def test_each_byte_sent_is_an_edge(uart: Uart) -> None:
    uart.write(MCR, 0x08)
    uart.write(IER, 2)
    uart.read(IIR)
    for count in range(2, 5):
        uart.write(THR, 0x41)
        assert uart.line.level
        assert uart.line.edges == count
        uart.read(IIR)


def test_input_interrupts_until_it_is_read(uart: Uart) -> None:
    uart.write(MCR, 0x08)
    uart.write(IIR, 0x81)
    uart.write(IER, 1)
    uart.device.feed(b"ab")
    assert uart.line.level
    assert uart.read(IIR) == 0xCC, "below the trigger level it is the timeout"
    assert uart.read(LSR) & 1
    assert [uart.read(THR), uart.read(THR)] == [0x61, 0x62]
    assert not uart.read(LSR) & 1
    assert not uart.line.level
    uart.device.feed(bytes(20))
    assert uart.read(IIR) == 0xC4
    assert len(uart.device._received) == 20


def test_no_input_is_lost_without_a_reader(uart: Uart) -> None:
    data = bytes(range(256)) * 8
    uart.device.feed(data)
    assert bytes(uart.read(THR) for _ in data) == data
    assert uart.read(THR) == 0


def test_clearing_the_fifo_drops_what_it_can_hold(uart: Uart) -> None:
    uart.write(IIR, 1)
    uart.device.feed(bytes(range(20)))
    uart.write(IIR, 3)
    assert [uart.read(THR) for _ in range(4)] == [16, 17, 18, 19]


def test_out2_gates_the_interrupt(uart: Uart) -> None:
    uart.write(IER, 1)
    uart.device.feed(b"x")
    assert not uart.line.level
    uart.write(MCR, 0x08)
    assert uart.line.level


def test_loop_back(uart: Uart) -> None:
    uart.write(MCR, 0x1F)
    uart.write(THR, 0x55)
    assert uart.read(THR) == 0x55
    assert uart.sent == b""
    assert uart.read(MSR) & 0xF0 == 0xF0
    uart.write(MCR, 0x10)
    assert uart.read(MSR) == 0x0F, "CTS, DSR and DCD changed, RI ended"
    assert uart.read(MSR) == 0


def test_state_survives(uart: Uart) -> None:
    uart.write(MCR, 0x08)
    uart.write(IER, 3)
    uart.device.feed(b"rest")
    other = Uart()
    other.device.load(uart.device.dump())
    assert other.device.dump() == uart.device.dump()
    assert [other.read(THR) for _ in range(4)] == list(b"rest")
