# SPDX-License-Identifier: GPL-2.0-or-later
"""Where members of a kernel's own structures are: its type information, BTF (Linux Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from veil.formats.elf_headers import ELF_HEADER, SECTION_HEADER
from veil.guest.errors import GuestImageError

__all__ = ["btf_section", "member_offsets"]

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_MAGIC = 0xEB9F
_STRUCT = 4
#: Bytes behind a type's three words, for each kind from 1 on: fixed, and for each of its members.
_SIZES = (
    (4, 0), (0, 0), (12, 0), (0, 12), (0, 12), (0, 8), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 8), (4, 0),
    (0, 12), (0, 0), (4, 0), (0, 0), (0, 12),
)  # fmt: skip


class _Type(NamedTuple):
    kind: int
    name: int
    flag: bool
    members: int
    """How many."""
    at: int
    """Where they begin."""


def btf_section(elf: bytes) -> bytes:
    """What is in the section .BTF of an ELF file. Raises GuestImageError."""
    try:
        fields = ELF_HEADER.unpack_from(elf)
        table, count, names = fields[6], fields[12], fields[13]
        sections = [SECTION_HEADER.unpack_from(elf, table + number * SECTION_HEADER.size) for number in range(count)]
        strings = sections[names][4]
        for section in sections:
            if elf.startswith(b".BTF\0", strings + section[0]):
                return elf[section[4] : section[4] + section[5]]
    except (struct.error, LookupError) as error:
        raise GuestImageError(f"the kernel's type information is not an ELF file: {error}") from error
    raise GuestImageError("the kernel has no type information: no section .BTF")


def member_offsets(btf: bytes, structure: str, members: tuple[str, ...]) -> tuple[int, ...]:
    """In bytes, of members of `struct structure`. Raises GuestImageError."""
    try:
        magic, _, _, length, types, types_length, strings, _ = _HEADER.unpack_from(btf)
        if magic != _MAGIC:
            raise GuestImageError("the kernel's type information does not begin as BTF does")
        strings += length
        for found in _types(btf, length + types, types_length):
            if found.kind == _STRUCT and _is(btf, strings + found.name, structure):
                offsets = dict(_members(btf, found, strings))
                return tuple(offsets[member] for member in members)
    except (struct.error, LookupError, ValueError) as error:
        raise GuestImageError(f"struct {structure} in the kernel's type information: {error!r}") from error
    raise GuestImageError(f"the kernel's type information has no struct {structure}")


def _types(btf: bytes, at: int, length: int) -> Iterator[_Type]:
    end = at + length
    while at < end:
        name, info, _ = _TYPE.unpack_from(btf, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        if not 1 <= kind <= len(_SIZES):
            raise GuestImageError(f"the kernel's type information has an unknown kind of type, {kind}")
        at += _TYPE.size
        yield _Type(kind, name, bool(info >> 31), members, at)
        fixed, each = _SIZES[kind - 1]
        at += fixed + each * members


def _members(btf: bytes, of: _Type, strings: int) -> Iterator[tuple[str, int]]:
    for number in range(of.members):
        name, _, offset = _MEMBER.unpack_from(btf, of.at + number * _MEMBER.size)
        bits = offset & 0xFFFFFF if of.flag else offset
        start = strings + name
        yield btf[start : btf.index(b"\0", start)].decode(), bits // 8


def _is(btf: bytes, at: int, name: str) -> bool:
    return btf.startswith(name.encode() + b"\0", at)
