# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts between processors and from devices."""

from __future__ import annotations

import pytest

from tests.host.devices.fakes import Clock, Memory
from veil.host.devices import Platform

ICR_LOW, ICR_HIGH, SVR, LDR = 0xFEE00300, 0xFEE00310, 0xFEE000F0, 0xFEE000D0
SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18
LOGICAL, LOWEST, NMI, INIT, STARTUP, ASSERT, LEVEL = 1 << 11, 1 << 8, 4 << 8, 5 << 8, 6 << 8, 1 << 14, 1 << 15


class Board:
    def __init__(self, vcpus: int = 4, *, x2apic: bool = False) -> None:
        clock = Clock()
        self.platform = Platform(Memory(), vcpus=vcpus, now_ns=clock.now_ns, tsc=clock.tsc, x2apic=x2apic)
        self.log: list[tuple[str, int]] = []
        self.platform.on_init = lambda vcpu: self.log.append(("init", vcpu))
        self.platform.on_sipi = lambda vcpu: self.log.append(("sipi", vcpu))
        self.platform.on_nmi = lambda vcpu: self.log.append(("nmi", vcpu))
        for vcpu in range(vcpus):
            if x2apic:
                self.platform.msr_write(vcpu, 0x80F, 0x1FF)
            else:
                self.platform.mmio_write(SVR, 4, 0x1FF, vcpu)
                self.platform.mmio_write(LDR, 4, 1 << 24 + vcpu, vcpu)

    def ipi(self, low: int, to: int = 0, vcpu: int = 0) -> None:
        self.platform.mmio_write(ICR_HIGH, 4, to << 24, vcpu)
        self.platform.mmio_write(ICR_LOW, 4, low, vcpu)

    def pending(self) -> list[int | None]:
        return [self.platform.pending_vector(vcpu) for vcpu in range(len(self.platform.apics))]


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.mark.parametrize(
    ("low", "to", "targets"),
    [
        (0xFD, 2, {2}),
        (0xFD, 0xFF, {0, 1, 2, 3}),
        (0xFD, 9, set()),
        (0xFD | SELF, 3, {1}),
        (0xFD | ALL, 0, {0, 1, 2, 3}),
        (0xFD | OTHERS, 0, {0, 2, 3}),
        (0xFD | LOGICAL, 0b1010, {1, 3}),
        (0xFD | LOGICAL, 0xFF, {0, 1, 2, 3}),
    ],
)
def test_destinations(board: Board, low: int, to: int, targets: set[int]) -> None:
    board.ipi(low, to, vcpu=1)
    assert board.pending() == [0xFD if vcpu in targets else None for vcpu in range(4)]


def test_a_vcpu_moves_its_page(board: Board) -> None:
    """And no other's. What was there before is seen again."""
    platform = board.platform
    assert platform.msr_write(1, 0x1B, 0xFED40000 | 1 << 11)
    assert platform.mmio_read(0xFED40020, 4, 1) >> 24 == 1
    assert platform.mmio_read(0xFEE00020, 4, 1) == platform.mmio_read(0xFED40020, 4, 0) == 0xFFFFFFFF
    assert platform.mmio_read(0xFEE00020, 4, 0) == 0


def test_each_vcpu_has_its_own_page(board: Board) -> None:
    assert [board.platform.mmio_read(0xFEE00020, 4, vcpu) >> 24 for vcpu in range(4)] == [0, 1, 2, 3]


def test_lowest_priority_goes_to_one(board: Board) -> None:
    board.platform.mmio_write(0xFEE00080, 4, 0x20, 0)
    board.ipi(0xFD | LOGICAL | LOWEST, 0b0111)
    assert board.pending() == [None, 0xFD, None, None]


def test_x2apic_destinations() -> None:
    board = Board(x2apic=True)
    write = board.platform.msr_write
    assert write(0, 0x830, 3 << 32 | 0x51)
    assert write(0, 0x830, 0b0110 << 32 | 0x52 | LOGICAL)
    assert board.pending() == [None, 0x52, 0x52, 0x51]
    assert write(0, 0x830, 0xFFFFFFFF << 32 | 0x61)
    assert board.pending() == [0x61] * 4


def test_init_startup_nmi_are_told(board: Board) -> None:
    board.platform.mmio_write(ICR_LOW, 4, SELF | 0x55, 2)
    board.ipi(INIT | ASSERT | LEVEL, 2)
    assert board.pending()[2] is None, "INIT resets the APIC"
    board.ipi(INIT | LEVEL, 2)
    board.ipi(STARTUP | 0x99, 2)
    board.ipi(NMI | OTHERS)
    assert board.log == [("init", 2), ("sipi", 2), ("nmi", 1), ("nmi", 2), ("nmi", 3)]


def test_an_illegal_vector_is_the_senders_error(board: Board) -> None:
    board.ipi(0x05, 1)
    board.platform.mmio_write(0xFEE00280, 4, 0, 0)
    assert board.platform.mmio_read(0xFEE00280, 4, 0) == 0x20
    assert board.pending() == [None] * 4


def test_messages(board: Board) -> None:
    send = board.platform.interrupts.send_message
    send(0xFEE02000, 0x41)
    send(0xFEE0A00C, 0x42)  # lowest priority of VCPUs 1 and 3
    assert board.pending() == [None, 0x42, 0x41, None]
    send(0xFEEFF000, 0x71)
    assert board.pending() == [0x71] * 4


@pytest.mark.parametrize(
    ("address", "data"),
    [(0x1000, 0x41), (0xFED02000, 0x41), (0x1_FEE02000, 0x41), (0xFEE02000, 0x541), (0xFEE02000, 0x641),
     (0xFEE02000, 0x241), (0xFEE02000, 0x341), (0xFEE02000, 0x741)],
)  # fmt: skip
def test_messages_that_are_no_interrupts(board: Board, address: int, data: int) -> None:
    """A guest programs them: they must not reach memory, nor stop processors."""
    board.platform.interrupts.send_message(address, data)
    assert board.pending() == [None] * 4
    assert board.log == []


def test_virtual_wire() -> None:
    board = Board(2)
    platform = board.platform
    platform.mmio_write(0xFEE00350, 4, 0x700, 0)
    for port, *values in ((0x20, 0x11), (0x21, 0x30, 4, 1, 0xFE)):
        for value in values:
            platform.io_write(port, 1, value)
    for port, value in ((0x43, 0x34), (0x40, 0xFF), (0x40, 0x10)):
        platform.io_write(port, 1, value)
    deadline = platform.next_deadline_ns(0)
    assert deadline is not None
    assert platform.next_deadline_ns(1) is None
    platform.tick(deadline)
    assert board.pending() == [0x30, None]
    assert platform.acknowledge(0) == 0x30
    assert platform.apics[0].isr == 0
    platform.tick(deadline + 10**9)
    assert board.pending() == [None, None], "the 8259 waits for its EOI"
    platform.io_write(0x20, 1, 0x60)
    assert board.pending() == [0x30, None]
    platform.mmio_write(0xFEE00350, 4, 0x10700, 0)
    assert board.pending() == [None, None]
