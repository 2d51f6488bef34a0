# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical memory."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.errors import SnpError
from veil.snp.machine import Machine
from veil.snp.memory import MAX_FAR_MEMORY, Memory, address_space, holes, ram_ranges


def test_one_mapping_for_everybody() -> None:
    memory = Memory(64 * PAGE_SIZE)
    assert (memory.size, memory.pages) == (64 * PAGE_SIZE, 64)
    memory.buf[PAGE_SIZE] = 7
    assert ctypes.string_at(memory.address + PAGE_SIZE, 2) == b"\x07\x00"
    assert memory.words[1, 0] == 7
    assert memory.written_pages(0, 3).tolist() == [False, True, False]


def test_huge_memory_costs_nothing_until_written() -> None:
    memory = Memory(64 << 30)
    memory.buf[-1] = 1
    assert memory.buf[-1] == 1


@pytest.mark.parametrize("size", [0, -PAGE_SIZE, 1, PAGE_SIZE + 1, 1 << 63])
def test_bad_size(size: int) -> None:
    with pytest.raises(SnpError):
        Memory(size)


@pytest.mark.parametrize(("start", "length"), [(3, 10), (100, 40 * PAGE_SIZE), (PAGE_SIZE, 20 * PAGE_SIZE)])
@pytest.mark.parametrize("from_file", [False, True])
def test_zero(tmp_path: Path, start: int, length: int, from_file: bool) -> None:
    content = b"x" * 64 * PAGE_SIZE
    if from_file:
        path = tmp_path / "memory"
        path.write_bytes(content)
        with open(path, "rb") as file:
            memory = Memory.from_file(file.fileno(), len(content))
    else:
        memory = Memory(len(content))
        memory.buf[:] = content
    memory.zero(start, length)
    assert memory.buf.tobytes() == b"x" * start + bytes(length) + b"x" * (len(content) - start - length)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("first", [0, 700])
def test_written_pages(told: bool, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(3000 * PAGE_SIZE)
    for page in (0, 1, 700, 1500, 2999):
        memory.buf[(page + 1) * PAGE_SIZE - 1] = 1
    _ = memory.buf[1000 * PAGE_SIZE]
    if not told:
        monkeypatch.setattr(Memory, "_touched_pages", lambda *_: None)
    found = np.flatnonzero(memory.written_pages(first, 3000 - first)) + first
    assert found.tolist() == [page for page in (0, 1, 700, 1500, 2999) if page >= first]


def test_looking_at_memory_leaves_it_unbacked() -> None:
    memory = Memory(4096 * PAGE_SIZE)
    touched = memory._touched_pages(0, 4096)
    if touched is None:
        pytest.skip("no /proc/self/pagemap here")
    memory.buf[0] = 1
    assert not memory.written_pages(512, 3584).any()
    after = memory._touched_pages(0, 4096)
    assert after is not None
    assert after[0]
    assert not after[512:].any()


def test_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(PAGE_SIZE) + b"snapshot" * 1024)
    with open(path, "rb") as file:
        memory = Memory.from_file(file.fileno(), 2 * PAGE_SIZE, PAGE_SIZE)
        with pytest.raises(SnpError):
            Memory.from_file(file.fileno(), 2 * PAGE_SIZE, 1)
        with pytest.raises(SnpError):
            Memory.from_file(file.fileno(), 4 * PAGE_SIZE)
    assert memory.buf[:8].tobytes() == b"snapshot"
    memory.buf[:8] = b"changed!"
    assert b"changed!" not in path.read_bytes()


_MIB, _GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("sizes", "pieces", "gaps"),
    [
        ((2 * _MIB,), [(0, 2 * _MIB)], []),
        ((3 * _GIB,), [(0, 3 * _GIB)], []),
        (
            (3 * _GIB + 2 * _MIB,),
            [(0, 3 * _GIB), (4 * _GIB, 2 * _MIB)],
            [(3 * _GIB, 4 * _GIB)],
        ),
        (
            (2 * _MIB, PAGE_SIZE, (512 * _GIB, 2 * _MIB)),
            [(0, 2 * _MIB), (4 * _GIB - PAGE_SIZE, PAGE_SIZE), (512 * _GIB, 2 * _MIB)],
            [(2 * _MIB, 4 * _GIB - PAGE_SIZE), (4 * _GIB, 512 * _GIB)],
        ),
        (
            (4 * _GIB, PAGE_SIZE),
            [(0, 3 * _GIB), (4 * _GIB - PAGE_SIZE, PAGE_SIZE), (4 * _GIB, _GIB)],
            [(3 * _GIB, 4 * _GIB - PAGE_SIZE)],
        ),
    ],
    ids=["little", "to the hole", "above the hole", "far", "firmware between"],
)
def test_ram_has_holes(sizes: tuple[Any, ...], pieces: list[tuple[int, int]], gaps: list[tuple[int, int]]) -> None:
    """What is from 3 GiB on lies above the devices' hole."""
    assert ram_ranges(*sizes) == pieces
    assert holes(pieces) == [range(start // PAGE_SIZE, end // PAGE_SIZE) for start, end in gaps]
    assert address_space(pieces) == sum(pieces[-1])


@pytest.mark.parametrize(
    "piece",
    [(_GIB, 2 * _MIB), (8 * _GIB + PAGE_SIZE, 2 * _MIB), (8 * _GIB, PAGE_SIZE), (8 * _GIB, 0),
     (MAX_FAR_MEMORY - 2 * _MIB, 4 * _MIB)],
    ids=["inside of the other", "begins amid 2 MiB", "ends amid 2 MiB", "none", "beyond all"],
)  # fmt: skip
def test_far_memory_that_no_machine_has(piece: tuple[int, int]) -> None:
    with pytest.raises(SnpError, match="far memory is whole 2 MiB between 0x100000000 and 0x10000000000, not 0x"):
        Machine(2 * _MIB, firmware_size=PAGE_SIZE, far_memory=piece)
