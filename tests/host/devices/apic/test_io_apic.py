# SPDX-License-Identifier: GPL-2.0-or-later
"""The I/O APIC: its registers, and what its pins do at the local APICs."""

from __future__ import annotations

import json

import pytest

from tests.host.devices.fakes import Clock, Memory
from veil.host.devices import Chipset, Platform

SELECT, WINDOW = 0xFEC00000, 0xFEC00010
EOI, SVR, LDR = 0xFEE000B0, 0xFEE000F0, 0xFEE000D0
LOWEST, SMI, NMI, INIT, STARTUP, EXTINT = 1 << 8, 2 << 8, 4 << 8, 5 << 8, 6 << 8, 7 << 8
LOGICAL, ACTIVE_LOW, REMOTE_IRR, LEVEL, MASKED = 1 << 11, 1 << 13, 1 << 14, 1 << 15, 1 << 16
PIN, OTHER = 16, 17


class Board:
    """Local APICs that are on, with logical destinations 1, 2, 4, 8, and the I/O APIC by its two registers."""

    def __init__(self, vcpus: int = 4) -> None:
        clock = Clock()
        self.clock = clock
        self.platform = Platform(
            Memory(), vcpus=vcpus, now_ns=clock.now_ns, tsc=clock.tsc, wall_ns=clock.wall_ns, chipset=Chipset.Q35
        )
        assert self.platform.io_apic is not None
        self.device = self.platform.io_apic
        self.told: list[tuple[str, int]] = []
        self.platform.on_init = lambda vcpu: self.told.append(("init", vcpu))
        self.platform.on_sipi = lambda vcpu: self.told.append(("sipi", vcpu))
        self.platform.on_nmi = lambda vcpu: self.told.append(("nmi", vcpu))
        for vcpu in range(vcpus):
            self.platform.mmio_write(SVR, 4, 0x1FF, vcpu)
            self.platform.mmio_write(LDR, 4, 1 << 24 + vcpu, vcpu)
        # Linux masks the 8259s.
        for port in (0x21, 0xA1):
            self.platform.io_write(port, 1, 0xFF)

    def read(self, register: int) -> int:
        self.platform.mmio_write(SELECT, 4, register)
        return self.platform.mmio_read(WINDOW, 4)

    def write(self, register: int, value: int) -> None:
        self.platform.mmio_write(SELECT, 4, register)
        self.platform.mmio_write(WINDOW, 4, value)

    def redirect(self, low: int, to: int = 0, pin: int = PIN) -> None:
        self.write(0x11 + 2 * pin, to << 24)
        self.write(0x10 + 2 * pin, low)

    def entry(self, pin: int = PIN) -> int:
        return self.read(0x11 + 2 * pin) << 32 | self.read(0x10 + 2 * pin)

    def drive(self, level: bool, pin: int = PIN) -> None:
        self.device.set_pin(pin, level)

    def pulse(self, pin: int = PIN) -> None:
        self.drive(True, pin)
        self.drive(False, pin)

    def pending(self) -> list[int | None]:
        return [self.platform.pending_vector(vcpu) for vcpu in range(len(self.platform.apics))]

    def take(self, vcpu: int = 0) -> int:
        """The processor takes its interrupt and ends it."""
        vector = self.platform.acknowledge(vcpu)
        self.platform.mmio_write(EOI, 4, 0, vcpu)
        return vector


@pytest.fixture
def board() -> Board:
    return Board()


def test_registers_after_reset(board: Board) -> None:
    assert board.read(0) == 0
    assert board.read(1) == 0x00170011, "version 11h, 24 pins"
    assert all(board.entry(pin) == MASKED for pin in range(24))
    assert board.read(0x40) == board.read(0xFF) == 0


def test_what_can_be_written(board: Board) -> None:
    for register in (0, 1, 2, 0x10, 0x11, 0x3F, 0x40, 0xFF):
        board.write(register, 0xFFFFFFFF)
    assert board.read(0) == board.read(2) == 0x0F000000
    assert board.read(1) == 0x00170011
    assert board.entry(0) == 0xFF000000_0001AFFF, "neither delivery status nor remote IRR"
    assert board.entry(1) == MASKED
    assert board.read(0x40) == board.read(0xFF) == 0


def test_sizes_of_accesses(board: Board) -> None:
    board.redirect(0x55 | MASKED)
    board.platform.mmio_write(SELECT, 1, 0x10 + 2 * PIN)
    assert board.platform.mmio_read(SELECT, 4) == 0x10 + 2 * PIN
    board.platform.mmio_write(WINDOW, 2, 0x66)
    assert board.platform.mmio_read(WINDOW, 1) == 0, "the window has 32 bits"
    assert board.platform.mmio_read(WINDOW, 4) == 0x55 | MASKED
    board.platform.mmio_write(0xFEC00004, 4, 1)
    assert board.platform.mmio_read(0xFEC00004, 4) == 0


def test_a_board_that_is_booted_directly_has_none() -> None:
    platform = Platform(Memory())
    assert platform.io_apic is None
    assert platform.mmio_read(WINDOW, 4) == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("low", "to", "targets"),
    [
        (0, 2, {2}),
        (0, 0xFF, {0, 1, 2, 3}),
        (0, 9, set()),
        (LOGICAL, 0b1010, {1, 3}),
        (LOGICAL | LOWEST, 0b1010, {1}),
        (ACTIVE_LOW, 1, {1}),
    ],
)
def test_destinations(board: Board, low: int, to: int, targets: set[int]) -> None:
    board.redirect(0x51 | low, to)
    board.pulse()
    assert board.pending() == [0x51 if vcpu in targets else None for vcpu in range(4)]


def test_an_edge_is_one_interrupt(board: Board) -> None:
    board.redirect(0x51)
    board.drive(True)
    assert board.take() == 0x51
    board.drive(True)
    assert board.pending()[0] is None, "it has not risen again"
    board.drive(False)
    board.drive(True)
    assert board.take() == 0x51
    assert board.entry() == 0x51


def test_an_edge_at_a_masked_pin_is_lost(board: Board) -> None:
    board.redirect(0x51 | MASKED)
    board.drive(True)
    board.redirect(0x51)
    assert board.pending()[0] is None


def test_a_level_is_sent_once_until_its_end(board: Board) -> None:
    board.redirect(0x51 | LEVEL)
    board.drive(True)
    board.drive(True)
    assert board.entry() == 0x51 | LEVEL | REMOTE_IRR
    assert board.platform.acknowledge(0) == 0x51
    board.drive(True)
    assert board.pending()[0] is None
    board.platform.mmio_write(EOI, 4, 0)
    assert board.pending()[0] == 0x51, "the line is still asserted"
    board.platform.acknowledge(0)
    board.drive(False)
    board.platform.mmio_write(EOI, 4, 0)
    assert board.pending()[0] is None
    assert board.entry() == 0x51 | LEVEL


def test_the_end_of_an_edge_ends_no_level(board: Board) -> None:
    board.redirect(0x51 | LEVEL, to=1)
    board.redirect(0x51, to=0, pin=OTHER)
    board.drive(True)
    board.pulse(OTHER)
    board.take(0)
    assert board.entry() & REMOTE_IRR


def test_a_level_waits_at_a_masked_pin(board: Board) -> None:
    board.redirect(0x51 | LEVEL | MASKED)
    board.drive(True)
    assert board.pending()[0] is None
    board.redirect(0x51 | LEVEL)
    assert board.take() == 0x51


def test_a_level_that_nobody_takes_is_sent_later(board: Board) -> None:
    board.redirect(0x51 | LEVEL, to=9)
    board.drive(True)
    assert not board.entry() & REMOTE_IRR
    board.redirect(0x51 | LEVEL, to=3)
    assert board.pending() == [None, None, None, 0x51]


def test_linux_clears_remote_irr_by_the_trigger_mode(board: Board) -> None:
    """As __eoi_ioapic_pin does for versions below 20h: mask and make it edge-triggered, then as before."""
    board.redirect(0x51 | LEVEL)
    board.drive(True)
    assert board.entry() & REMOTE_IRR
    board.drive(False)
    board.write(0x10 + 2 * PIN, 0x51 | MASKED)
    assert not board.entry() & REMOTE_IRR
    board.write(0x10 + 2 * PIN, 0x51 | LEVEL)
    assert board.entry() == 0x51 | LEVEL


@pytest.mark.parametrize("mode", [SMI, 3 << 8, INIT, STARTUP, EXTINT])
@pytest.mark.parametrize("trigger", [0, LEVEL])
def test_modes_that_are_no_devices_business(board: Board, mode: int, trigger: int) -> None:
    board.redirect(0x51 | mode | trigger, to=1)
    board.drive(True)
    assert board.pending() == [None] * 4
    assert board.told == []
    assert not board.entry() & REMOTE_IRR


@pytest.mark.parametrize("trigger", [0, LEVEL])
def test_an_nmi_is_an_edge(board: Board, trigger: int) -> None:
    board.redirect(NMI | trigger, to=1)
    assert board.told == []
    board.pulse()
    board.drive(True)
    board.drive(True)
    assert board.told == [("nmi", 1)] * 2
    assert not board.entry() & REMOTE_IRR
    assert board.pending() == [None] * 4


def test_an_illegal_vector_is_an_error_of_the_receiver(board: Board) -> None:
    board.redirect(0x05)
    board.pulse()
    board.platform.mmio_write(0xFEE00280, 4, 0)
    assert board.platform.mmio_read(0xFEE00280, 4) == 0x40
    assert board.pending()[0] is None


def test_isa_irqs_have_their_pins(board: Board) -> None:
    """The timer's is 2; COM1 as Linux has it: edge-triggered."""
    board.redirect(0x30, pin=2)
    for port, value in ((0x43, 0x34), (0x40, 0xFF), (0x40, 0x10)):
        board.platform.io_write(port, 1, value)
    deadline = board.platform.next_deadline_ns(0)
    assert deadline is not None
    for _ in range(2):
        board.platform.tick(deadline)
        assert board.take() == 0x30
        deadline += 10**9
    board.redirect(0x34, to=2, pin=4)
    board.platform.io_write(0x3FC, 1, 0x08)
    board.platform.io_write(0x3F9, 1, 0x01)
    for key in b"ab":
        board.platform.serial.feed(bytes([key]))
        assert board.take(2) == 0x34
        assert board.platform.io_read(0x3F8, 1) == key
        assert board.pending()[2] is None


def test_a_snapshot_has_what_waits(board: Board) -> None:
    board.redirect(0x51 | LEVEL)
    board.drive(True)
    board.platform.acknowledge(0)
    copy = Board()
    copy.platform.load(board.platform.dump())
    assert copy.device.dump() == json.loads(json.dumps(board.device.dump()))
    assert copy.pending()[0] is None
    copy.platform.mmio_write(EOI, 4, 0)
    assert copy.pending()[0] == 0x51
