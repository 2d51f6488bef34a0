# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration space, BARs, MSI-X."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.host.devices.fakes import Clock, ConsoleDriver, Memory
from veil.host.devices import Platform


class Board:
    def __init__(self) -> None:
        self.memory = Memory()
        clock = Clock()
        self.platform = Platform(self.memory, now_ns=clock.now_ns, tsc=clock.tsc)
        self.driver = ConsoleDriver(self.platform, self.memory)

    def read(self, slot: int, offset: int, size: int = 4) -> int:
        self.platform.io_write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        return self.platform.io_read(0xCFC + (offset & 3), size)

    def write(self, slot: int, offset: int, value: int, size: int = 4) -> None:
        self.platform.io_write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        self.platform.io_write(0xCFC + (offset & 3), size, value)

    def capabilities(self) -> list[tuple[int, int]]:
        found, offset = [], self.read(1, 0x34, 1)
        while offset:
            found.append((self.read(1, offset, 1), offset))
            offset = self.read(1, offset + 1, 1)
        return found


@pytest.fixture
def board() -> Board:
    return Board()


def test_mechanism_1_is_found(board: Board) -> None:
    # arch/x86/pci/direct.c, pci_check_type1.
    board.platform.io_write(0xCFB, 1, 1)
    board.platform.io_write(0xCF8, 4, 0x80000000)
    assert board.platform.io_read(0xCF8, 4) == 0x80000000
    assert board.read(0, 0x0A, 2) == 0x0600


def test_who_is_there(board: Board) -> None:
    there = [slot for slot in range(32) if board.read(slot, 0) != 0xFFFFFFFF]
    assert there == [0, 1]
    assert board.read(1, 0) == 0x10431AF4
    assert board.read(1, 0x0E, 1) == 0, "one function"
    board.platform.io_write(0xCF8, 4, 0x80010800)
    assert board.platform.io_read(0xCFC, 4) == 0xFFFFFFFF, "no bus 1"
    board.platform.io_write(0xCF8, 4, 0x800)
    assert board.platform.io_read(0xCFC, 4) == 0xFFFFFFFF, "not enabled"
    board.platform.io_write(0xCF8, 4, 0x80000800)
    assert board.platform.io_read(0xCFE, 4) == 0xFFFFFFFF, "across the doubleword"


def test_bar_sizing_and_moving(board: Board) -> None:
    assert board.read(1, 0x10) == 0xC001
    assert board.read(1, 0x14) == 0xC0000000
    board.write(1, 0x10, 0xFFFFFFFF)
    assert board.read(1, 0x10) == 0xFF81
    board.write(1, 0x14, 0xFFFFFFFF)
    assert board.read(1, 0x14) == 0xFFFFF000
    board.write(1, 0x18, 0xFFFFFFFF)
    assert board.read(1, 0x18) == 0
    assert board.platform.io_read(0xC012, 2) == 0xFFFF, "nothing is decoded there now"
    board.write(1, 0x10, 0x2001)
    assert board.platform.io_read(0x2012, 2) == 6
    board.write(1, 0x14, 0xD0000000)
    board.platform.mmio_write(0xD0000000, 4, 0x12345678)
    assert board.platform.mmio_read(0xD0000000, 4) == 0x12345678
    assert board.platform.mmio_read(0xC0000000, 4) == 0xFFFFFFFF


def test_decoding_can_be_switched_off(board: Board) -> None:
    command = board.read(1, 4, 2)
    assert command & 7 == 7
    board.write(1, 4, command & ~3, 2)
    assert board.platform.io_read(0xC012, 2) == 0xFFFF
    assert board.platform.mmio_read(0xC0000000, 4) == 0xFFFFFFFF
    board.write(1, 4, command, 2)
    assert board.platform.io_read(0xC012, 2) == 6


def test_a_bar_over_a_fixed_device_hides_only_itself(board: Board) -> None:
    board.write(1, 0x10, 0x0381)
    assert board.platform.io_read(0x3FD, 1) == 0x60
    board.write(1, 0x14, 0xFEE00000)
    assert board.platform.mmio_read(0xFEE00030, 4) == 0x50014
    board.write(1, 0x14, 0x00100000)
    assert board.platform.mmio_read(0x00100000, 4) == 0xFFFFFFFF


def test_identity_is_read_only(board: Board) -> None:
    for offset in (0x00, 0x08, 0x2C, 0x34):
        before = board.read(1, offset)
        board.write(1, offset, ~before & 0xFFFFFFFF)
        assert board.read(1, offset) == before


def test_virtio_capabilities(board: Board) -> None:
    kinds = [board.read(1, offset + 3, 1) for number, offset in board.capabilities() if number == 9]
    assert kinds == [1, 2, 3, 4, 5]
    for number, offset in board.capabilities():
        if number == 9 and board.read(1, offset + 3, 1) != 5:
            assert board.read(1, offset + 4, 1) == 0, "in the I/O BAR"
            assert board.read(1, offset + 8) + board.read(1, offset + 12) <= 0x80
    assert board.capabilities()[0] == (0x11, 0x40)
    assert board.read(1, 0x42, 2) == 6, "seven messages: the configuration and six queues"


def test_window_in_configuration_space(board: Board) -> None:
    ((_, window),) = [(n, o) for n, o in board.capabilities() if n == 9 and board.read(1, o + 3, 1) == 5]
    board.write(1, window + 4, 0, 1)
    board.write(1, window + 8, 0x12)
    board.write(1, window + 12, 2)
    assert board.read(1, window + 16) == 6
    board.write(1, window + 8, 0x16)
    board.write(1, window + 16, 3)
    assert board.platform.io_read(0xC016, 2) == 3
    board.write(1, window + 12, 3)
    board.read(1, window + 16)
    board.write(1, window + 12, 4)
    board.write(1, window + 8, 0xFFFFFFFC)
    board.read(1, window + 16)
    board.write(1, window + 16, 0)


class TestMsix:
    def test_masked_messages_wait(self, board: Board) -> None:
        driver, platform = board.driver, board.platform
        driver.setup_msix()
        platform.mmio_write(0xC000003C, 4, 1)
        platform.console.msix.signal(3)
        assert platform.pending_vector(0) is None
        assert platform.mmio_read(0xC0000800, 8) == 8
        platform.mmio_write(0xC000003C, 4, 0)
        assert platform.pending_vector(0) == 0x43
        assert platform.mmio_read(0xC0000800, 8) == 0

    def test_function_mask(self, board: Board) -> None:
        driver, platform = board.driver, board.platform
        driver.setup_msix()
        control = driver.config_read(0x42, 2)
        driver.config_write(0x42, 2, control | 1 << 14)
        platform.console.msix.signal(1)
        assert platform.pending_vector(0) is None
        driver.config_write(0x42, 2, control)
        assert platform.pending_vector(0) == 0x41

    def test_odd_accesses(self, board: Board) -> None:
        platform = board.platform
        platform.mmio_write(0xC0000001, 4, 0xFFFFFFFF)
        platform.mmio_write(0xC0000000, 1, 0xFF)
        platform.mmio_write(0xC0000800, 8, 0xFF)
        platform.mmio_write(0xC0000FF8, 8, 0xFF)
        assert platform.mmio_read(0xC0000000, 8) == 0
        assert platform.mmio_read(0xC0000800, 8) == 0
        platform.mmio_write(0xC000000C, 4, 0xFFFFFFFE)
        assert platform.mmio_read(0xC000000C, 4) == 0, "only the mask bit exists"
        platform.console.msix.signal(0xFFFF)


@settings(max_examples=examples(100))
@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF), st.booleans()),
        max_size=40,
    )
)
def test_no_configuration_breaks_the_board(accesses: list[tuple[int, int, int, bool]]) -> None:
    board = Board()
    for offset, size, value, write in accesses:
        act: Callable[[], object] = (
            (lambda: board.write(1, offset, value & (1 << 8 * size) - 1, size))  # noqa: B023
            if write
            else (lambda: board.read(1, offset, size))  # noqa: B023
        )
        act()
        assert board.platform.io_read(0x3FD, 1) == 0x60
        assert board.read(1, 0) == 0x10431AF4
    other = Board()
    other.platform.load(board.platform.dump())
    assert other.platform.dump() == board.platform.dump()
