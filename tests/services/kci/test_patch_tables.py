# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables from hostile hands: a bounded refusal, or sites inside of the code."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.kci.small_kernel import BASE, SmallKernel
from veil.services.kci import AddressRange, CodeRules, KernelCode, Section, Surroundings, TableError, parse_tables

SIZE = 0x400
INSIDE = [AddressRange(BASE, BASE + SIZE)]
NAMES = (
    ".altinstructions", ".retpoline_sites", ".return_sites", ".ibt_endbr_seal", ".smp_locks", "__mcount_loc",
    "__jump_table", ".static_call_sites",
)  # fmt: skip

_NEAR = st.integers(-SIZE, SIZE)


@given(sections=st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=200)))
def test_any_bytes(sections: dict[str, bytes]) -> None:
    try:
        tables = parse_tables({name: Section(BASE + SIZE, data) for name, data in sections.items()}, INSIDE)
    except TableError:
        return
    for sites in (tables.retpolines, tables.returns, tables.endbr_seals, tables.smp_locks, tables.functions,
                  tables.alternatives["site"], tables.jumps["site"], tables.static_calls["site"]):  # fmt: skip
        assert ((sites >= np.uint64(BASE)) & (sites < np.uint64(BASE + SIZE))).all()


@given(
    code=st.binary(min_size=SIZE, max_size=SIZE),
    alternatives=st.lists(
        st.tuples(
            st.integers(0, SIZE), st.integers(0, SIZE), st.integers(0, 3), st.integers(0, 3), st.integers(0, 20),
            st.integers(0, 20),
        ),
        max_size=4,
    ),
    sites=st.dictionaries(st.sampled_from(NAMES[1:5]), st.lists(st.integers(0, SIZE), max_size=4)),
    jumps=st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=3),
    now=st.binary(min_size=SIZE, max_size=SIZE),
)  # fmt: skip
def test_any_tables_of_a_module(
    code: bytes,
    alternatives: list[tuple[int, int, int, int, int, int]],
    sites: dict[str, list[int]],
    jumps: list[tuple[int, int]],
    now: bytes,
) -> None:
    table = BASE + SIZE
    sections = {}
    packed = b"".join(
        struct.pack("<iiHHBB", site - SIZE - 14 * number, source - SIZE - 14 * number - 4, *rest)
        for number, (site, source, *rest) in enumerate(alternatives)
    )
    sections[".altinstructions"] = Section(table, packed)
    for name, offsets in sites.items():
        packed = b"".join(struct.pack("<i", at - SIZE - 4 * number) for number, at in enumerate(offsets))
        sections[name] = Section(table, packed)
    packed = b"".join(
        struct.pack("<iiq", site - SIZE - 16 * number, target - SIZE - 16 * number - 4, 0)
        for number, (site, target) in enumerate(jumps)
    )
    sections["__jump_table"] = Section(table, packed)
    near = _near()

    def read(address: int, length: int) -> bytes:
        return code[address - BASE : address - BASE + length]

    try:
        rules = CodeRules(BASE, code, parse_tables(sections, INSIDE), read, near)
    except TableError:
        return
    explanation = rules.explain(now, read)
    assert explanation.sound == (explanation.unexplained_bytes == 0)


_kept: list[KernelCode] = []


def _near() -> Surroundings:
    if not _kept:
        _kept.append(KernelCode(SmallKernel().image()))
    return _kept[0].near


@pytest.mark.parametrize("name", NAMES)
def test_half_an_entry(name: str) -> None:
    with pytest.raises(TableError, match="whole entries"):
        parse_tables({name: Section(BASE, b"\1\2\3")}, INSIDE)


def test_addresses_that_wrap() -> None:
    entry = struct.pack("<iiHHBB", -14, -8, 1, 0, 255, 0)
    with pytest.raises(TableError, match="outside"):
        parse_tables({".altinstructions": Section(BASE + 0x10, entry)}, [AddressRange(BASE, BASE + 4)])
    with pytest.raises(TableError, match="outside"):
        parse_tables({"__mcount_loc": Section(BASE, b"\xff" * 8)}, INSIDE)


@pytest.mark.parametrize("name", [".cfi_sites", ".parainstructions"])
def test_kinds_that_are_not_known(name: str) -> None:
    with pytest.raises(TableError, match="does not know"):
        parse_tables({name: Section(BASE, bytes(8))}, INSIDE)
    parse_tables({name: Section(BASE, b"")}, INSIDE)


def test_zeros_of_mcount_loc_and_smp_locks_mean_nothing() -> None:
    sections = {"__mcount_loc": Section(BASE, bytes(16)), ".smp_locks": Section(BASE, bytes(8))}
    tables = parse_tables(sections, INSIDE)
    assert not len(tables.functions)
    assert not len(tables.smp_locks)
