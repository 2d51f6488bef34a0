# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table is found by its structure, and decoded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.services.kci.small_kernel import BASE, OFFSETS, PHYSICAL, TEXT_SIZE, SmallKernel, kallsyms
from veil.services.kci import ImageError, KernelImage, Segment
from veil.services.kci.kallsyms import find_symbols

_NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,40}", fullmatch=True)
_ADDRESS = st.integers(BASE, BASE + (1 << 24))


def place(tables: bytes, filling: bytes = b"") -> bytes:
    """Tables behind a text and other data."""
    data = bytes(TEXT_SIZE) + filling
    return data + bytes(-len(data) % 8) + tables


@settings(max_examples=examples(100))
@given(symbols=st.dictionaries(_NAME, _ADDRESS, max_size=40), filling=st.binary(max_size=200))
def test_symbols_come_back(symbols: dict[str, int], filling: bytes) -> None:
    symbols = {"_text": BASE} | {name: at for name, at in symbols.items() if name != "_text"}
    found = find_symbols(place(kallsyms(symbols), filling), BASE)
    assert found is not None
    assert dict(zip(found.names, found.addresses.tolist(), strict=True)) == symbols
    assert list(found.addresses) == sorted(found.addresses)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 2000])
@pytest.mark.parametrize("alignment", [4, 8])
@pytest.mark.parametrize("offsets", OFFSETS)
def test_any_number_of_symbols_in_any_layout(count: int, alignment: int, offsets: str) -> None:
    chosen = random.Random(count)
    symbols = {f"symbol_{number}" + "x" * chosen.randrange(200): BASE + 16 * number for number in range(1, count)}
    symbols["_text"] = BASE
    for filling in range(0, 8, alignment):
        data = bytes(TEXT_SIZE + filling)
        tables = kallsyms(symbols, offsets=offsets, alignment=alignment, at=BASE + len(data))
        found = find_symbols(data + tables, BASE)
        assert found is not None
        assert len(found) == count
        assert {name: found.get(name) for name in symbols} == symbols


def test_offsets_that_the_image_does_not_hold() -> None:
    symbols = {"_text": BASE} | {f"symbol_{number}": BASE + number for number in range(100)}
    tables = kallsyms(symbols, offsets=OFFSETS[2], alignment=4, at=BASE + TEXT_SIZE)
    with pytest.raises(ImageError, match="ends in its kallsyms"):
        find_symbols(place(tables[: -3 * len(symbols) - 40]), BASE)


def test_digits_elsewhere_are_no_token_table() -> None:
    decoy = b"".join(b"%d\0" % digit for digit in range(10))
    found = find_symbols(place(kallsyms({"_text": BASE, "other": BASE + 4}), decoy * 30), BASE)
    assert found is not None
    assert found.names == ["_text", "other"]


def test_an_image_without_symbols() -> None:
    image = KernelImage([Segment(BASE, PHYSICAL, bytes(0x4000))])
    with pytest.raises(ImageError, match="kallsyms"):
        _ = image.symbols


def test_symbols_of_another_place() -> None:
    with pytest.raises(ImageError, match="do not fit"):
        find_symbols(place(kallsyms({"_text": BASE})), BASE + 0x200000)


@settings(max_examples=examples(100))
@given(seed=st.integers(0, 1 << 32), changes=st.integers(1, 20))
def test_damaged_tables_are_refused_or_give_symbols(seed: int, changes: int) -> None:
    chosen = random.Random(seed)
    data = bytearray(place(kallsyms({f"symbol_{number}": BASE + number for number in range(600)} | {"_text": BASE})))
    for _ in range(changes):
        data[TEXT_SIZE + chosen.randrange(len(data) - TEXT_SIZE)] = chosen.randrange(256)
    try:
        found = find_symbols(bytes(data), BASE)
    except ImageError:
        return
    assert found is None or len(found) <= 1024


def test_addresses_are_described() -> None:
    symbols = SmallKernel().image().symbols
    assert symbols.describe(BASE + 0x1F00) == "__fentry__+0x0"
    assert symbols.describe(BASE + 0x1F03) == "__fentry__+0x3"
    assert symbols.describe(0x1000) == "0x1000"
    assert symbols.describe(BASE + (1 << 30)) == f"{BASE + (1 << 30):#x}"


def test_an_image_reads_inside_of_a_segment_only() -> None:
    image = KernelImage([Segment(BASE, PHYSICAL, b"abcd"), Segment(BASE + 4, PHYSICAL + 4, b"efgh")])
    assert image.read(BASE + 1, 3) == b"bcd"
    for address, length in ((BASE + 2, 4), (BASE - 1, 2), (BASE + 8, 1)):
        with pytest.raises(ImageError, match="not in the kernel image"):
            image.read(address, length)
    with pytest.raises(ImageError, match="overlap"):
        KernelImage([Segment(BASE, PHYSICAL, b"abcd"), Segment(BASE + 3, PHYSICAL + 4, b"efgh")])
