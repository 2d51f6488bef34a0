# SPDX-License-Identifier: GPL-2.0-or-later
"""IGVM files: what is said of a good one, and that each wrong field is one line that names it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.igvm_writer import PAGE, IgvmWriter, vmsa
from veil.formats.igvm import HeaderType
from veil.formats.igvm_directives import PageDataType
from veil.guest.errors import GuestImageError
from veil.guest.igvm.file import Area, Context, Pages, parse_igvm

_LARGE = 2 << 20
_NAME = "guest.igvm"


def _writer() -> IgvmWriter:
    return IgvmWriter().platform()


def _whole() -> IgvmWriter:
    """One with every header that is for SEV-SNP, and some that are for others."""
    return (
        IgvmWriter()
        .platform(mask=2, kind=3)
        .platform(mask=1)
        .platform(mask=8, kind=0x77)
        .policy(0x30000)
        .policy(5, mask=2)
        .relocatable(mask=2)
        .page_table(mask=2)
        .raw(0x106, struct.pack("<II2Q8x", 2, 0, 0, 0))
        .required(0, _LARGE, flags=1)
        .page(0x4000, b"\x11" * PAGE)
        .page(0x5000)
        .page(0x4000, b"\x22" * PAGE, mask=2)
        .page(0x6000, kind=1)
        .area(4, PAGE, b"\x44" * PAGE)
        .area(5, 2 * PAGE)
        .parameter(0x307, 4, 16)
        .parameter(0x30C, 5)
        .insert(0x7000, 4)
        .insert(0x8000, 5)
        .error_range(0xA000, PAGE)
        .raw(0x311, struct.pack("<I860x", 2))
        .raw(0x80000399, b"anything")
        .raw(0x80000000 | 0x302, struct.pack("<QIIIHH", 0xB000, 1, 0, 0, 0, 0))
        .context(0xC000, vmsa(2, rip=7), vp=1)
        .context(0xFFFFFFFFF000, vmsa(0))
    )


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_said(version: int) -> None:
    file = parse_igvm(replace(_whole(), version=version).write(gap=16), _NAME)
    first, zeros, secrets, one, two, errors, optional, guest, monitor = file.items
    assert file.policy == 0x30000
    assert file.identity is None
    assert [(item.gpa, item.size) for item in file.required] == [(0, _LARGE)]
    assert isinstance(first, Pages)
    assert (first.gpa, first.size, bytes(first.data or b"")) == (0x4000, PAGE, b"\x11" * PAGE)
    assert isinstance(zeros, Pages)
    assert zeros.data is None
    assert isinstance(secrets, Pages)
    assert secrets.kind == PageDataType.SECRETS
    assert isinstance(one, Area)
    assert isinstance(two, Area)
    assert (one.gpa, bytes(one.initial or b"")) == (0x7000, b"\x44" * PAGE)
    assert (two.gpa, two.size, two.initial) == (0x8000, 2 * PAGE, None)
    assert [(item.kind, item.offset) for item in one.parameters] == [(HeaderType.VP_COUNT_PARAMETER, 16)]
    assert [item.kind for item in two.parameters] == [HeaderType.MEMORY_MAP]
    assert isinstance(errors, Pages)
    assert (errors.gpa, errors.shared) == (0xA000, True)
    # A type that is known is read, whether or not others may leave it out.
    assert optional.gpa == 0xB000
    assert isinstance(guest, Context)
    assert (guest.gpa, guest.vp_index, guest.vmsa) == (0xC000, 1, vmsa(2, rip=7))
    assert isinstance(monitor, Context)
    assert monitor.gpa == 0xFFFFFFFFF000


_FIXED: list[tuple[str, dict[str, object], str]] = [
    ("magic", {"magic": b"IGVN"}, "this is not an IGVM file"),
    ("total, more", {"total": 1 << 31}, "it says that it has 2147483648 bytes, and has"),
    ("total, less", {"total": 24}, "it says that it has 24 bytes, and has"),
    ("checksum", {"checksum": 0}, "its headers have the checksum 0x"),
    ("offset in the fixed header", {"offset": 16}, "not whole multiples of 8"),
    ("offset, unaligned", {"offset": 28}, "not whole multiples of 8"),
    ("offset, outside", {"offset": 0xFFFFFFF8}, "not whole multiples of 8"),
    ("size, outside", {"size": 0xFFFFFFF8}, "not whole multiples of 8"),
    ("size, unaligned", {"size": 12}, "not whole multiples of 8"),
]


@pytest.mark.parametrize(("fields", "words"), [item[1:] for item in _FIXED], ids=[item[0] for item in _FIXED])
def test_fixed_header(fields: dict[str, object], words: str) -> None:
    _refused(_writer().context(0, vmsa(0)).write(**fields), words)  # type: ignore[arg-type]


def test_versions() -> None:
    good = _writer().context(0, vmsa(0))
    for version in (0, 3, 0xFFFFFFFF):
        _refused(replace(good, version=version).write(), f"it has version {version} of the format, known are 1 and 2")
    second = replace(good, version=2)
    _refused(second.write(architecture=1), "it is for another architecture (1) than x86-64 (0)")
    _refused(second.write(page_size=65536), "its pages have 65536 bytes, this machine's have 4096")
    for length in range(24):
        _refused(good.write()[:length], "this is not an IGVM file")
    for length in range(24, 32):
        _refused(second.write()[:length], f"it ends in its fixed header, after {length} bytes")


def _refused(data: bytes, words: str) -> None:
    with pytest.raises(GuestImageError) as caught:
        parse_igvm(data, _NAME)
    said = str(caught.value)
    assert words in said
    assert said.startswith(f"{_NAME}: ")
    assert "\n" not in said


def _named_header(data: bytes, words: str) -> None:
    """The line says which header it is, and where."""
    with pytest.raises(GuestImageError, match=rf"^{_NAME}: header \d+ \((type )?\w+, at 0x[0-9a-f]+\)"):
        parse_igvm(data, _NAME)
    _refused(data, words)


_ID_BLOCK = struct.pack("<IB3x48x16x16xIIII", 1, 0, 1, 0, 1, 1) + bytes(144 + 152 + 144 + 152)

_HEADERS: list[tuple[str, Callable[[IgvmWriter], IgvmWriter], str]] = [
    ("unknown type", lambda w: w.raw(0x306, b""), "is of a type that this version does not know"),
    ("unknown type 0", lambda w: w.raw(0, b""), "is of a type that this version does not know"),
    ("unknown, between sections", lambda w: w.raw(0x250, b""), "is of a type that this version does not know"),
    ("too long", lambda w: w.raw(0x302, bytes(25)), "PAGE_DATA has 24 bytes, not 25"),
    ("too short", lambda w: w.raw(0x304, bytes(19)), "VP_CONTEXT has 20 bytes, not 19"),
    ("padding", lambda w: w.raw(0x80000399, b"odd", b"\1"), "the bytes that pad it to a multiple of 8 are not zero"),
    ("platform in directives", lambda w: w.page(0).platform(mask=2), "belongs to the platforms, and the directives"),
    ("policy in directives", lambda w: w.page(0).policy(5), "belongs to the initializations, and the directives"),
    ("platform after policy", lambda w: w.policy(5).platform(2), "belongs to the platforms, and the initializations"),
    ("platform twice", lambda w: w.platform(mask=2), "the platform SEV_SNP stands in the file twice"),
    ("mask of two bits", lambda w: w.platform(mask=6, kind=3), "the compatibility mask 0x6 is not one bit"),
    ("mask of no bit", lambda w: w.platform(mask=0, kind=3), "the compatibility mask 0x0 is not one bit"),
    ("mask twice", lambda w: w.platform(mask=1, kind=3), "the compatibility mask 0x1 is not one bit"),
    ("policy twice", lambda w: w.policy(5).policy(5), "a second guest policy"),
    ("policy, reserved", lambda w: w.policy(5, reserved=1), "its reserved bytes are not zero"),
    ("relocation", lambda w: w.relocatable(), "this version does not relocate"),
    ("page table relocation", lambda w: w.page_table(), "this version does not relocate"),
    ("CoRIM outside", lambda w: w.raw(0x104, struct.pack("<IIII", 1, 8, 8, 0)), "do not lie in the file's data"),
    ("CoRIM reserved", lambda w: w.raw(0x105, struct.pack("<IIII", 1, 8, 8, 1)), "its reserved bytes are not zero"),
    ("CCA policy", lambda w: w.raw(0x106, struct.pack("<I28x", 1)), "it is for another platform"),
    ("VBS measurement", lambda w: w.raw(0x311, struct.pack("<I860x", 1)), "it is for another platform"),
    ("page, reserved", lambda w: w.page(0x4000, reserved=1), "reserved bits are not zero"),
    ("page, flags", lambda w: w.page(0x4000, flags=8), "reserved bits are not zero (flags 0x8)"),
    ("page, type", lambda w: w.page(0x4000, kind=4), "there is no type of data 0x4"),
    ("secrets, flags", lambda w: w.page(0x4000, kind=1, flags=2), "a SECRETS page has no flags, not 0x2"),
    ("CPUID, 2 MiB", lambda w: w.page(_LARGE, kind=2, flags=1), "a CPUID_DATA page has no flags, not 0x1"),
    ("page, unaligned", lambda w: w.page(0x4800), "0x1000 bytes at 0x4800 are not whole pages of 4 KiB"),
    ("large, unaligned", lambda w: w.page(0x4000, flags=1), "0x200000 bytes at 0x4000 are not whole pages of 2048 KiB"),
    ("page, beyond addresses", lambda w: w.page(1 << 48), "not whole pages of 4 KiB below 0x1000000000000"),
    ("page, end of 64 bits", lambda w: w.page((1 << 64) - PAGE), "not whole pages of 4 KiB below 0x1000000000000"),
    ("data in the headers", lambda w: w.page(0x4000, offset=24), "do not lie in the file's data"),
    ("data outside", lambda w: w.page(0x4000, offset=0xFFFFFFFF), "do not lie in the file's data"),
    ("page twice", lambda w: w.page(0x4000).page(0x4000), "the page at 0x4000 is also loaded by header 1 (PAGE_DATA"),
    ("page in a large one", lambda w: w.page(_LARGE, flags=1).page(_LARGE + 0x5000), "is also loaded by header 1"),
    ("page in a context", lambda w: w.page(0x1000).context(0x1000, vmsa(1)), "is also loaded by header 1 (PAGE_DATA"),
    ("page in an area", lambda w: w.area(1, 3 * PAGE).insert(0x1000, 1).page(0x3000), "by header 2 (PARAMETER_INSERT"),
    ("page in errors", lambda w: w.error_range(0x1000, PAGE).page(0x1000), "is also loaded by header 1 (ERROR_RANGE"),
    ("errors, empty", lambda w: w.error_range(0x1000, 0), "0x0 bytes at 0x1000 are not whole pages"),
    ("errors, unaligned", lambda w: w.error_range(0x1000, 5), "0x5 bytes at 0x1000 are not whole pages"),
    ("required, unaligned", lambda w: w.required(0x10, PAGE), "0x1000 bytes at 0x10 are not whole pages"),
    ("required, size", lambda w: w.required(0, 5), "0x5 bytes at 0x0 are not whole pages"),
    ("required, flags", lambda w: w.required(0, PAGE, flags=2), "reserved bits are not zero (flags 0x2)"),
    ("required, reserved", lambda w: w.required(0, PAGE, reserved=2), "reserved bits are not zero"),
    ("context, unaligned", lambda w: w.context(0x10, vmsa(0)), "0x1000 bytes at 0x10 are not whole pages"),
    ("context, reserved", lambda w: w.context(0, vmsa(0), reserved=1), "its reserved bytes are not zero"),
    ("context, no data", lambda w: w.context(0, b"", offset=0), "do not lie in the file's data"),
    ("area twice", lambda w: w.area(1).area(1), "parameter area 1 stands in the file twice"),
    ("area again", lambda w: w.area(1).insert(0x1000, 1).area(1), "parameter area 1 stands in the file twice"),
    ("area, empty", lambda w: w.area(1, 0), "0x0 bytes at 0x0 are not whole pages"),
    ("area, unaligned", lambda w: w.area(1, 5), "0x5 bytes at 0x0 are not whole pages"),
    ("area, huge", lambda w: w.area(1, (1 << 64) - PAGE), "are not whole pages of 4 KiB below 0x1000000000000"),
    ("area, data", lambda w: w.area(1, 1 << 30, offset=24), "its data, 0x40000000 bytes at 0x18, do not lie"),
    ("parameter, no area", lambda w: w.parameter(0x307, 9), "parameter area 9 was not declared"),
    ("parameter, late", lambda w: w.area(1).insert(0, 1).parameter(0x307, 1), "parameter area 1 was inserted already"),
    ("parameter, offset", lambda w: w.area(1).parameter(0x307, 1, PAGE), "the offset 0x1000 lies outside of its area"),
    ("insert, no area", lambda w: w.insert(0, 9), "parameter area 9 was not declared"),
    ("insert, twice", lambda w: w.area(1).insert(0, 1).insert(0x1000, 1), "parameter area 1 was inserted already"),
    ("insert, unaligned", lambda w: w.area(1).insert(8, 1), "0x1000 bytes at 0x8 are not whole pages"),
    ("ID block twice", lambda w: w.id_block(_ID_BLOCK).id_block(_ID_BLOCK), "a second ID block"),
    ("ID block, reserved", lambda w: w.id_block(_ID_BLOCK[:5] + b"\1" + _ID_BLOCK[6:]), "its reserved bytes are not"),
    ("ID block, key", lambda w: w.id_block(_ID_BLOCK[:252] + b"\1" + _ID_BLOCK[253:]), "its reserved bytes are not"),
    ("ID block, author", lambda w: w.id_block(_ID_BLOCK[:4] + b"\2" + _ID_BLOCK[5:]), "author_key_enabled is 2, not 0"),
    ("ID block, author's key", lambda w: w.id_block(_ID_BLOCK[:-1] + b"\1"), "an author's key is given, and is not"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [item[1:] for item in _HEADERS], ids=[item[0] for item in _HEADERS])
def test_headers(change: Callable[[IgvmWriter], IgvmWriter], words: str) -> None:
    _named_header(change(_writer()).context(0xF0000, vmsa(0)).write(), words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 2}, "version 2 of the platform SEV_SNP; known is 1"),
        ({"vtl": 3}, "a highest VTL of 3; there are 3"),
        ({"boundary": 1 << 46}, "this machine has no virtual top of memory (vTOM)"),
    ],
)
def test_platform(fields: dict[str, int], words: str) -> None:
    _named_header(IgvmWriter().platform(**fields).write(), words)


def test_other_platforms() -> None:
    """They are named; what is for them does not count."""
    _refused(IgvmWriter().write(), "it is not for SEV-SNP; its platforms: none")
    others = IgvmWriter().platform(1, kind=3).platform(2, kind=0x99)
    _refused(others.context(0, vmsa(0)).write(), "it is not for SEV-SNP; its platforms: TDX, 0x99")
    _refused(_writer().context(0, vmsa(0), mask=2).write(), "it has no VP_CONTEXT for SEV-SNP: no VCPU would start")


def test_headers_that_do_not_end() -> None:
    good = _writer().context(0, vmsa(0)).write()
    for length in (9, 0x7FFFFFFF, 0xFFFFFFFF):
        data = _with_checksum(good[:28] + struct.pack("<I", length) + good[32:])
        _refused(data, f"SUPPORTED_PLATFORM has 16 bytes, not {length}" if length == 9 else f"has {length} bytes, and")


def _with_checksum(data: bytes) -> bytes:
    size = int.from_bytes(data[12:16], "little")
    return data[:20] + struct.pack("<I", zlib.crc32(data[:20] + bytes(4) + data[24 : 24 + size])) + data[24:]


_SMALL = _whole().write()
_HEADER_BYTES = int.from_bytes(_SMALL[12:16], "little")


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(24, 23 + _HEADER_BYTES), st.integers(0, (1 << 64) - 1), st.sampled_from((1, 2, 4, 8))),
        max_size=4,
    )
)
def test_changed_fields(changes: list[tuple[int, int, int]]) -> None:
    """Whatever stands in the headers: the file is read, or one line says why not."""
    data = bytearray(_SMALL)
    for at, value, width in changes:
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    checked = _with_checksum(bytes(data[: len(_SMALL)]))
    words = ""
    try:
        parse_igvm(checked, _NAME)
    except GuestImageError as error:
        words = str(error)
    assert "\n" not in words
    assert not words or words.startswith(f"{_NAME}: ")
