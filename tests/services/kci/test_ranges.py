# SPDX-License-Identifier: GPL-2.0-or-later
"""What is code, what is read-only, what is gone, from an image's symbols."""

from __future__ import annotations

import pytest

from tests.services.kci.small_kernel import BASE, DATA, ENDBR, PHYSICAL, TEXT_SIZE, SmallKernel, call
from veil.services.kci import AddressRange, ImageError, KernelCode, kernel_ranges, physical_range


@pytest.fixture
def kernel() -> SmallKernel:
    kernel = SmallKernel()
    kernel.symbols |= {
        "__start_rodata": BASE + 0x4000,
        "__end_rodata": BASE + 0x5010,
        "_sdata": BASE + 0x8000,
        "__init_begin": BASE + 0x9000,
        "__init_end": BASE + 0xA000,
        "sys_call_table": BASE + 0x4100,
        "idt_table": BASE + 0xB000,
        "pv_ops": DATA + 0x40,
    }
    return kernel


def test_ranges_are_whole_pages(kernel: SmallKernel) -> None:
    kernel.symbols["_etext"] = BASE + TEXT_SIZE - 0x10
    ranges = kernel_ranges(kernel.image())
    assert (ranges.text.start, ranges.text.end) == (BASE, BASE + TEXT_SIZE)
    assert [(piece.start, piece.end) for piece in ranges.read_only] == [
        (BASE + 0x4000, BASE + 0x6000),
        (BASE + 0xB000, BASE + 0xC000),
    ]
    assert {(piece.start, piece.end) for piece in ranges.gone} == {
        (BASE + 0x9000, BASE + 0xA000),
        (BASE + TEXT_SIZE, BASE + 0x4000),
        (BASE + 0x6000, BASE + 0x8000),
    }
    assert set(ranges.kept) == {"sys_call_table", "idt_table"}
    assert set(ranges.writable) == {"pv_ops"}


def test_an_idt_that_shares_its_page_is_said_to_be_writable(kernel: SmallKernel) -> None:
    kernel.symbols["idt_table"] = BASE + 0xB800
    assert "idt_table" in kernel_ranges(kernel.image()).writable


@pytest.mark.parametrize(
    ("symbol", "address"),
    [
        ("__start_rodata", BASE + 0x4010),
        ("__end_rodata", BASE + 0x3000),
        ("__start_rodata", BASE),
        ("__init_begin", BASE + 0x5000),
        ("_etext", BASE - 0x1000),
    ],
)
def test_symbols_that_make_no_sense(kernel: SmallKernel, symbol: str, address: int) -> None:
    kernel.symbols[symbol] = address
    with pytest.raises(ImageError):
        kernel_ranges(kernel.image())


def test_a_missing_symbol_is_named(kernel: SmallKernel) -> None:
    del kernel.symbols["__end_rodata"]
    with pytest.raises(ImageError, match="__end_rodata"):
        kernel_ranges(kernel.image())


def test_physical_addresses(kernel: SmallKernel) -> None:
    image = kernel.image()
    piece = physical_range(image, AddressRange(BASE + 0x1000, BASE + 0x2000, "piece"))
    assert (piece.start, piece.end, piece.name) == (PHYSICAL + 0x1000, PHYSICAL + 0x2000, "piece")
    with pytest.raises(ImageError, match="not in the kernel image"):
        physical_range(image, AddressRange(BASE - 0x1000, BASE))


def test_code_that_is_gone_is_no_target_any_more(kernel: SmallKernel) -> None:
    site, function = BASE + 0x100, BASE + 0x200000
    kernel.entry("__start_static_call_sites", kernel.put(site, call(site, BASE + 0x1000)), DATA + 0x100)
    kernel.put(BASE + 0x1040, ENDBR)
    rules = KernelCode(kernel.image())
    now = bytearray(kernel.text)
    now[0x1040:0x1044] = bytes.fromhex("660f1f00")
    now[0x100:0x105] = call(site, function)
    assert not rules.explain(bytes(now), kernel.data_reader).sound
    rules.admit(rules.near.admit(targets=[function]))
    assert rules.explain(bytes(now), kernel.data_reader).sound
    rules.admit(rules.near.retire(AddressRange(function & -0x1000, function + 0x1000)))
    assert not rules.explain(bytes(now), kernel.data_reader).sound
