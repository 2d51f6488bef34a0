# SPDX-License-Identifier: GPL-2.0-or-later
"""An enclave's layout, and its measurement."""

from __future__ import annotations

import hashlib
import itertools
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats import enclaves
from veil.formats.enclave_calls import AddContent, Created, Finished
from veil.formats.enclaves import ARENA, RUNTIME, THREADS, WINDOW, Layout, Prot, Record, RecordKind, fixed_areas
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE

CODE = Record.content(Prot.R | Prot.X, RUNTIME, bytes(PAGE_SIZE))
DATA = Record(RecordKind.ZERO, Prot.R | Prot.W, RUNTIME + PAGE_SIZE, 3)
PROGRAM = Record.content(Prot.R, 0x400000, b"\x11" * 2 * PAGE_SIZE)


def layout(*records: Record, **changes: Any) -> Layout:
    made = Layout(RUNTIME + 0x100, RUNTIME, 2, 16, 64, records or (PROGRAM, CODE, DATA))
    return replace(made, **changes)


def test_packed_and_parsed() -> None:
    assert Layout.parse(layout().pack()) == layout()
    assert layout().measurement == hashlib.sha384(layout().pack()).digest()
    assert layout().zero_pages == 3


@pytest.mark.parametrize(
    "changes",
    [{"entry": RUNTIME + 0x101}, {"slots": 3}, {"pool_pages": 17}, {"arena_pages": 65}, {"window_pages": 8}],
    ids=str,
)
def test_the_measurement_covers_each_number(changes: dict[str, int]) -> None:
    assert layout(**changes).measurement != layout().measurement


def test_the_measurement_covers_each_record() -> None:
    others = [
        layout(PROGRAM._replace(va=0x401000), CODE, DATA),
        layout(PROGRAM._replace(prot=Prot.R | Prot.W), CODE, DATA),
        layout(PROGRAM._replace(digest=b"\1" * 48), CODE, DATA),
        layout(PROGRAM, CODE, DATA._replace(pages=2)),
        layout(PROGRAM, CODE),
    ]
    assert len({each.measurement for each in [layout(), *others]}) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 0},
        {"slots": 65},
        {"pool_pages": enclaves.MAX_PAGES + 1},
        {"arena_pages": (WINDOW - ARENA) // PAGE_SIZE + 1},
        {"window_pages": 1},
        {"window_pages": 65},
        {"entry": RUNTIME + PAGE_SIZE},
        {"entry": 0x400000},
        {"vectors": RUNTIME + 1},
        {"records": ()},
        {"records": (CODE, PROGRAM)},
        {"records": (CODE, CODE)},
        {"records": (PROGRAM._replace(pages=0), CODE)},
        {"records": (PROGRAM._replace(pages=enclaves.MAX_PAGES + 1), CODE)},
        {"records": (PROGRAM._replace(va=0x400001), CODE)},
        {"records": (PROGRAM._replace(va=0), CODE)},
        {"records": (PROGRAM._replace(prot=Prot.W), CODE)},
        {"records": (PROGRAM._replace(prot=Prot.NONE), CODE)},
        {"records": (PROGRAM._replace(digest=b""), CODE)},
        {"records": (CODE, DATA._replace(digest=b"\1" * 48))},
        {"records": (CODE, DATA._replace(va=enclaves.TOP - PAGE_SIZE))},
        {"records": (CODE, DATA._replace(va=1 << 63))},
        {"records": (PROGRAM._replace(va=ARENA), CODE)},
        {"records": (PROGRAM._replace(va=WINDOW - PAGE_SIZE), CODE)},
        {"records": (CODE, DATA._replace(va=THREADS - PAGE_SIZE))},
        {"records": (CODE, DATA._replace(va=enclaves.IDT))},
        {"records": (CODE, DATA._replace(va=enclaves.INFO))},
        {"records": (*(CODE._replace(va=PAGE_SIZE * (1 + at)) for at in range(enclaves.MAX_RECORDS)), CODE)},
    ],
)
def test_what_no_enclave_can_be(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        layout(**changes)


@pytest.mark.parametrize(
    ("at", "bytes_"),
    [(0, b"X"), (8, b"\1"), (0x34, b"\4"), (0x38, b"\1"), (0x40, b"\3"), (0x44, b"\x0d")],
    ids=["magic", "version", "records", "reserved", "kind", "prot"],
)
def test_what_is_no_layout(at: int, bytes_: bytes) -> None:
    packed = bytearray(layout().pack())
    packed[at : at + len(bytes_)] = bytes_
    with pytest.raises(FormatError):
        Layout.parse(bytes(packed))


@given(st.binary(max_size=300), st.integers(0, 300), st.binary(max_size=16))
def test_hostile_layouts(junk: bytes, at: int, patch: bytes) -> None:
    whole = layout().pack()
    for data in (junk, whole[:at], whole[:at] + patch + whole[at + len(patch) :], whole + junk):
        try:
            parsed = Layout.parse(data)
        except FormatError:
            continue
        assert parsed.pack() == data


def test_areas_are_apart() -> None:
    areas = sorted(fixed_areas())
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(areas))
    assert all(first % PAGE_SIZE == 0 and behind % PAGE_SIZE == 0 for first, behind in areas)
    assert areas[-1][1] <= enclaves.TOP
    assert enclaves.SYSTEM + enclaves.MAX_SLOTS * enclaves.SYSTEM_STRIDE <= enclaves.IDT < enclaves.INFO


def test_calls() -> None:
    assert AddContent.parse(AddContent(1, 2, 3).pack()) == (1, 2, 3)
    assert Created(1, 2).pack() == struct.pack("<IIQ", 1, 0, 2)
    assert Finished(b"m" * 48, (0x1000, 0x2000)).pack() == b"m" * 48 + struct.pack("<QQ", 0x1000, 0x2000)
    with pytest.raises(FormatError):
        AddContent.parse(b"")
