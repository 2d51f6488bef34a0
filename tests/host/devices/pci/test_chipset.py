# SPDX-License-Identifier: GPL-2.0-or-later
"""Q35's functions and ECAM, as firmware uses them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.host.devices.fakes import Clock, Memory
from veil.host.devices import BoardContents, Chipset, Platform, board_contents

ECAM = 0xE0000000
PCIEXBAR = 0x60
FUNCTIONS = {0: 0x29C08086, 1: 0x10431AF4, 0x1F: 0x29188086}


class Board:
    def __init__(self, chipset: Chipset = Chipset.Q35, firmware: BoardContents | None = None) -> None:
        clock = Clock()
        self.platform = Platform(Memory(), now_ns=clock.now_ns, tsc=clock.tsc, chipset=chipset, firmware=firmware)

    def read(self, slot: int, offset: int, size: int = 4) -> int:
        self.platform.io_write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        return self.platform.io_read(0xCFC + (offset & 3), size)

    def write(self, slot: int, offset: int, value: int, size: int = 4) -> None:
        self.platform.io_write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        self.platform.io_write(0xCFC + (offset & 3), size, value)

    def place_ecam(self, value: int) -> None:
        # As OVMF does it (PlatformPei, PlatformMemMapInitialization): off, the upper half, the lower with the bit.
        self.write(0, PCIEXBAR, 0)
        self.write(0, PCIEXBAR + 4, value >> 32)
        self.write(0, PCIEXBAR, value & 0xFFFFFFFF)

    def ecam(self, bus: int, slot: int, function: int, offset: int, size: int = 4, base: int = ECAM) -> int:
        return self.platform.mmio_read(base | bus << 20 | slot << 15 | function << 12 | offset, size)


@pytest.fixture
def board() -> Board:
    return Board()


def test_who_is_there(board: Board) -> None:
    found = {slot: board.read(slot, 0) for slot in range(32)}
    assert {slot: value for slot, value in found.items() if value != 0xFFFFFFFF} == FUNCTIONS
    assert board.read(0, 0x0A, 2) == 0x0600
    assert board.read(0x1F, 0x0A, 2) == 0x0601


def test_the_board_of_direct_boots_has_no_q35() -> None:
    board = Board(Chipset.GENERIC)
    assert board.read(0, 0) == 0x00081B36
    assert board.read(0x1F, 0) == 0xFFFFFFFF
    board.place_ecam(ECAM | 1)
    assert board.ecam(0, 0, 0, 0) == 0xFFFFFFFF


def test_ecam_is_there_once_it_is_enabled(board: Board) -> None:
    assert board.ecam(0, 0, 0, 0) == 0xFFFFFFFF
    board.place_ecam(ECAM | 1)
    assert {slot: board.ecam(0, slot, 0, 0) for slot in FUNCTIONS} == FUNCTIONS
    assert board.ecam(0, 2, 0, 0) == 0xFFFFFFFF
    assert board.ecam(0, 0, 1, 0) == 0xFFFFFFFF, "one function each"
    assert board.ecam(1, 0, 0, 0) == 0xFFFFFFFF, "one bus"
    assert board.ecam(0, 0, 0, 2, 2) == 0x29C0
    assert board.ecam(0, 0, 0, 0x100) == 0, "no extended capabilities"
    assert board.ecam(0, 0, 0, 0, 8) == 0xFFFFFFFFFFFFFFFF, "a bridge may refuse more than a doubleword"
    board.platform.mmio_write(ECAM | 1 << 15 | 0x3C, 1, 0x0B)
    assert board.read(1, 0x3C, 1) == 0x0B
    board.place_ecam(0)
    assert board.ecam(0, 0, 0, 0) == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("memory", "there", "not_there"), [(1 << 30, 0x80000000, 0x7FFFF000), (8 << 30, 0xC0000000, 0xBFFFF000)]
)
def test_firmware_places_devices_above_2_gib_and_memory(memory: int, there: int, not_there: int) -> None:
    board = Board(firmware=board_contents(memory, [(0, memory)], 1, None))
    bar = 0x14
    for address, value in ((there, 7), (not_there, 0xFFFFFFFF)):
        board.write(1, bar, address)
        assert board.read(1, bar) == address
        board.platform.mmio_write(address, 4, 7)
        assert board.platform.mmio_read(address, 4) == value


@pytest.mark.parametrize(("encoding", "size"), [(0, 256 << 20), (2, 128 << 20), (4, 64 << 20)])
def test_ecam_has_the_size_that_was_asked_for(board: Board, encoding: int, size: int) -> None:
    board.place_ecam(ECAM | encoding | 1)
    (window,) = [item for item in board.platform.mmio._windows if item.start == ECAM]
    assert window.length == size


@pytest.mark.parametrize("base", [0, 0xB0000000, 0xF0000000, 1 << 35])
def test_ecam_never_lies_over_memory_or_the_local_apic(board: Board, base: int) -> None:
    board.place_ecam(base | 1)
    assert board.ecam(0, 0, 0, 0, base=base) != FUNCTIONS[0]
    assert board.platform.mmio_read(0xFEE00030, 4) == 0x50014


def test_no_bar_hides_ecam(board: Board) -> None:
    board.write(1, 0x14, ECAM)
    assert board.ecam(0, 0, 0, 0) == 0, "the MSI-X table"
    board.place_ecam(ECAM | 1)
    assert board.ecam(0, 0, 0, 0) == FUNCTIONS[0]
    board.write(1, 0x14, 0xC0000000)
    board.write(1, 0x14, ECAM)
    assert board.ecam(0, 0, 0, 0) == FUNCTIONS[0]


def test_the_lpc_bridge_keeps_what_firmware_writes(board: Board) -> None:
    board.write(0x1F, 0x40, 0x600)
    assert board.read(0x1F, 0x40) == 0x601
    board.write(0x1F, 0x44, 0x80, 1)
    assert board.read(0x1F, 0x44, 1) == 0x80
    board.write(0x1F, 0x60, 0x0A, 1)
    assert board.read(0x1F, 0x60) == 0x8080800A
    board.write(0x1F, 0xF0, 0xFED1C001)
    assert board.read(0x1F, 0xF0) == 0xFED1C001
    assert board.read(0, 0) == FUNCTIONS[0]


@settings(max_examples=examples(100))
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 0x1F]), st.integers(0, 63).map(lambda n: 4 * n), st.integers(0, 0xFFFFFFFF)),
        max_size=30,
    )
)
def test_no_configuration_breaks_the_board_and_snapshots_keep_it(writes: list[tuple[int, int, int]]) -> None:
    board = Board()
    for slot, offset, value in writes:
        board.write(slot, offset, value)
        assert {slot: board.read(slot, 0) for slot in FUNCTIONS} == FUNCTIONS
        assert board.platform.mmio_read(0xFEE00030, 4) == 0x50014
    other = Board()
    other.platform.load(board.platform.dump())
    assert other.platform.dump() == board.platform.dump()
    assert other.ecam(0, 0, 0, 0) == board.ecam(0, 0, 0, 0)
