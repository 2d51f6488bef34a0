# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF: offsets of members, and type information that is not valid."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.guest.errors import GuestImageError
from veil.guest.linux.btf import btf_section, member_offsets

STRINGS = b"\0int\0load\0hdr\0len\0other\0"
INT, STRUCT, UNION = 1, 4, 5


def name(text: str) -> int:
    return STRINGS.index(text.encode() + b"\0")


def a_type(kind: int, text: str, *members: tuple[str, int], flag: bool = False) -> bytes:
    head = struct.pack("<III", name(text), int(flag) << 31 | kind << 24 | len(members), 24)
    return head + b"".join(struct.pack("<III", name(member), 1, offset) for member, offset in members)


def btf(*types: bytes) -> bytes:
    body = b"".join(types)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(STRINGS)) + body + STRINGS


AN_INT = a_type(INT, "int") + struct.pack("<I", 32)
WHOLE = btf(
    AN_INT,
    a_type(UNION, "load", ("hdr", 0), ("len", 0)),
    a_type(STRUCT, "other", ("len", 8)),
    a_type(STRUCT, "load", ("hdr", 128), ("len", 192)),
)


def test_offsets() -> None:
    assert member_offsets(WHOLE, "load", ("hdr", "len")) == (16, 24)
    assert member_offsets(WHOLE, "other", ("len",)) == (1,)
    bits = btf(AN_INT, a_type(STRUCT, "load", ("hdr", 3 << 24 | 64), flag=True))
    assert member_offsets(bits, "load", ("hdr",)) == (8,)


@pytest.mark.parametrize(
    ("data", "structure", "message"),
    [
        (WHOLE, "none", "no struct none"),
        (btf(AN_INT, a_type(STRUCT, "load", ("hdr", 0))), "load", "struct load .*len"),
        (btf(a_type(31, "load")), "load", "unknown kind of type, 31"),
        (b"\0" * 100, "load", "does not begin as BTF"),
        (b"", "load", "type information"),
    ],
)
def test_type_information_that_does_not_say(data: bytes, structure: str, message: str) -> None:
    with pytest.raises(GuestImageError, match=message):
        member_offsets(data, structure, ("hdr", "len"))


@given(st.binary(max_size=200))
def test_sections(data: bytes) -> None:
    for elf in (data, b"\x7fELF" + data):
        with pytest.raises(GuestImageError):
            btf_section(elf)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_byte_of_it_is_another(at: int, value: int) -> None:
    changed = WHOLE[:at] + bytes((value,)) + WHOLE[at + 1 :]
    with contextlib.suppress(GuestImageError):
        member_offsets(changed, "load", ("hdr", "len"))
