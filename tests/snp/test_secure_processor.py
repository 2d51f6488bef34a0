# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch part of the secure processor, held against the package sev-snp-measure wherever the two overlap."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sevsnpmeasure.gctx import GCTX
from sevsnpmeasure.vmsa import SevEsSaveArea

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp import endorsement
from veil.snp.errors import LaunchError
from veil.snp.layouts import Vmsa
from veil.snp.memory import Memory
from veil.snp.rmp import EntryFlag, PageSize, Rmp
from veil.snp.secure_processor import PageType, SecureProcessor, launch_digest

_PAGES = 64
_POLICY = 1 << 17


def _processor() -> tuple[SecureProcessor, Memory, Rmp]:
    memory = Memory(_PAGES * PAGE_SIZE)
    rmp = Rmp(_PAGES)
    rmp.rmpupdate(0, assigned=True, size=PageSize.SIZE_4K, count=_PAGES)
    return SecureProcessor(memory, rmp), memory, rmp


def _reference(pages: list[tuple[int, bytes, int]]) -> bytes:
    context: Any = GCTX()
    for gpa, data, kind in pages:
        if kind == PageType.NORMAL:
            context.update_normal_pages(gpa, data)
        elif kind == PageType.VMSA:
            context.update_vmsa_page(data)
        elif kind == PageType.ZERO:
            context.update_zero_pages(gpa, len(data))
        elif kind == PageType.UNMEASURED:
            context.update_unmeasured_pages(gpa, len(data))
        elif kind == PageType.SECRETS:
            context.update_secrets_page(gpa)
        else:
            context.update_cpuid_page(gpa)
    result: bytes = context.ld()
    return result


_cpuid_page = struct.pack("<IIQ", 1, 0, 0) + struct.pack("<2I2Q4IQ", 1, 0, 0, 0, 1, 2, 3, 4, 0)


@st.composite
def _launches(draw: st.DrawFn) -> list[tuple[int, bytes, int]]:
    """Page ranges that do not overlap, of all types, in any order."""
    pages = []
    at = 0
    while at < _PAGES - 4 and draw(st.booleans() if at else st.just(True)):
        at += draw(st.integers(0, 3))
        kind = draw(st.sampled_from(list(PageType)))
        single = kind in (PageType.VMSA, PageType.SECRETS, PageType.CPUID)
        count = 1 if single else draw(st.integers(1, 3))
        if kind == PageType.CPUID:
            data = _cpuid_page.ljust(PAGE_SIZE, b"\0")
        else:
            data = draw(st.binary(min_size=1, max_size=64)).ljust(count * PAGE_SIZE, b"\xa5")
        pages.append((at * PAGE_SIZE, data, int(kind)))
        at += count
    return draw(st.permutations(pages))


@settings(max_examples=40, deadline=None)
@given(_launches())
def test_digest_is_that_of_sev_snp_measure(pages: list[tuple[int, bytes, int]]) -> None:
    processor, _, _ = _processor()
    processor.launch_start(_POLICY)
    for gpa, data, kind in pages:
        if kind == PageType.VMSA:
            processor.launch_update_vmsa(gpa, data)
        else:
            processor.launch_update(gpa, data, kind)
    processor.launch_finish()
    expected = _reference(pages)
    assert processor.measurement == expected
    assert launch_digest(pages) == expected


def test_one_changed_byte_changes_the_digest() -> None:
    page = bytes(PAGE_SIZE)
    changed = b"\1" + page[1:]
    assert launch_digest([(0, page, 1)]) != launch_digest([(0, changed, 1)])
    assert launch_digest([(0, page, 1)]) != launch_digest([(PAGE_SIZE, page, 1)])
    assert launch_digest([(0, page, 4)]) == launch_digest([(0, changed, 4)])


def test_vmsa_layout_is_that_of_sev_snp_measure() -> None:
    # Names differ here and there; where both have one, the offsets must agree.
    ours = {name: getattr(Vmsa, name).offset for name, *_ in Vmsa._fields_ if not name.startswith("reserved")}
    theirs = {
        name: getattr(SevEsSaveArea, name).offset
        for name, *_ in SevEsSaveArea._fields_
        if not name.startswith("reserved")
    }
    common = set(ours) & set(theirs)
    assert len(common) > 60
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}
    assert ctypes.sizeof(Vmsa) == 0x670


def test_loaded_pages_are_the_guests_and_validated() -> None:
    processor, memory, rmp = _processor()
    processor.launch_start(_POLICY)
    processor.launch_update(0, b"\x11" * PAGE_SIZE, PageType.NORMAL)
    processor.launch_update_vmsa(PAGE_SIZE, bytes(PAGE_SIZE))
    assert memory.buf[0] == 0x11
    assert rmp.entry(0)["flags"] & EntryFlag.VALIDATED
    assert not rmp.entry(0)["flags"] & EntryFlag.VMSA
    assert rmp.is_vmsa(PAGE_SIZE)
    assert not rmp.entry(2 * PAGE_SIZE)["flags"] & EntryFlag.VALIDATED


def test_secrets_page_has_fresh_keys_that_the_digest_does_not_cover() -> None:
    digests, pages = set(), set()
    for _ in range(2):
        processor, memory, _ = _processor()
        processor.launch_start(_POLICY)
        processor.launch_update(0, bytes(PAGE_SIZE), PageType.SECRETS)
        digests.add(processor.measurement)
        pages.add(bytes(memory.buf[:PAGE_SIZE]))
        for vmpl, key in enumerate(processor.vmpcks):
            assert memory.buf[0x20 + 32 * vmpl : 0x40 + 32 * vmpl] == key
    assert len(digests) == 1
    assert len(pages) == 2


def test_commands_out_of_order_are_refused() -> None:
    processor, _, _ = _processor()
    with pytest.raises(LaunchError, match="idle"):
        processor.launch_update(0, bytes(PAGE_SIZE), PageType.NORMAL)
    processor.launch_start(_POLICY)
    with pytest.raises(LaunchError, match="launching"):
        processor.launch_start(_POLICY)
    processor.launch_finish()
    with pytest.raises(LaunchError, match="running"):
        processor.launch_update(0, bytes(PAGE_SIZE), PageType.NORMAL)


@pytest.mark.parametrize(
    ("gpa", "data", "kind", "message"),
    [
        (1, bytes(PAGE_SIZE), 1, "whole pages"),
        (0, bytes(100), 1, "whole pages"),
        (0, b"", 1, "whole pages"),
        (0, bytes(PAGE_SIZE), 9, "no launch page type 9"),
        (0, bytes(PAGE_SIZE), 2, "launch_update_vmsa"),
        (_PAGES * PAGE_SIZE, bytes(PAGE_SIZE), 1, "outside"),
        (0, struct.pack("<I", 65).ljust(PAGE_SIZE, b"\0"), 6, "65 entries"),
        (0, struct.pack("<IIQ", 2, 0, 0).ljust(PAGE_SIZE, b"\0"), 6, "twice"),
    ],
)
def test_bad_launch_pages_are_refused(gpa: int, data: bytes, kind: int, message: str) -> None:
    processor, _, _ = _processor()
    processor.launch_start(_POLICY)
    before = processor.measurement
    with pytest.raises(LaunchError, match=message):
        processor.launch_update(gpa, data, kind)
    assert processor.measurement == before


def test_a_page_cannot_be_loaded_twice() -> None:
    processor, memory, _ = _processor()
    processor.launch_start(_POLICY)
    processor.launch_update(0, b"\x11" * PAGE_SIZE, PageType.NORMAL)
    with pytest.raises(LaunchError, match="refused"):
        processor.launch_update(0, b"\x22" * PAGE_SIZE, PageType.NORMAL)
    assert memory.buf[0] == 0x11


def test_policy_bit_17_must_be_one() -> None:
    processor, _, _ = _processor()
    with pytest.raises(LaunchError, match="bit 17"):
        processor.launch_start(0)


def test_state_goes_into_a_snapshot_and_back() -> None:
    processor, memory, rmp = _processor()
    processor.launch_start(_POLICY)
    processor.launch_update(0, bytes(PAGE_SIZE), PageType.SECRETS)
    processor.launch_finish(host_data=b"h" * 32)
    other = SecureProcessor(memory, rmp)
    other.load(processor.dump(), new_keys=False)
    assert (other.measurement, other.vmpcks, other.policy, other.host_data) == (
        processor.measurement,
        processor.vmpcks,
        processor.policy,
        processor.host_data,
    )
    with pytest.raises(LaunchError):
        other.launch_start(_POLICY)


def test_without_an_endorsement_it_makes_keys_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endorsement, "_RSA_BITS", 2048)  # sooner made
    processor, _, _ = _processor()
    made = processor.endorsement
    assert made is processor.endorsement
    assert made.chip_id.startswith(endorsement.CHIP_ID_MARK)
