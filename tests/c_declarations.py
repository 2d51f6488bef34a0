# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the plain declarations of our own C files, to compare them with the Python definitions of the same facts."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Declarations", "Member"]

_TYPES: dict[str, Any] = {
    **{f"u{bits}": kind for bits, kind in zip((8, 16, 32, 64), (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32,
       ctypes.c_uint64), strict=True)},
    "s32": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
}  # fmt: skip
_TYPES |= {f"uint{name[1:]}_t": kind for name, kind in _TYPES.items() if name.startswith("u")}
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
_DEFINE = re.compile(r"^[ \t]*#define[ \t]+(\w+)[ \t]+([^\n]+)$", re.M)
_ENUM = re.compile(r"enum\s+(\w+)\s*\{([^}]*)\}")
_STRUCT = re.compile(r"struct\s+(\w+)\s*\{([^}]*)\}([^;]*);")
_MEMBER = re.compile(r"(\w+)(?:\[([^\]]*)\])?$")
_ARITHMETIC = re.compile(r"[-+*<>|&~() 0-9a-fA-Fx]+")


@dataclass(frozen=True)
class Member:
    """Of a structure, in bytes; size 0: an array that goes on after the end."""

    offset: int
    size: int


@dataclass
class Declarations:
    """Numbers (of `#define` and `enum`) and structures, by name. What is not plain numbers is left out."""

    numbers: dict[str, int] = field(default_factory=dict)
    enums: dict[str, dict[str, int]] = field(default_factory=dict)
    structs: dict[str, dict[str, Member]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """In bytes, of each structure."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Declarations:
        """Of all these files. Raises AssertionError if two define a name differently."""
        found = cls()
        plain = [_COMMENT.sub(" ", text) for text in texts]
        for text in plain:
            for name, value in _DEFINE.findall(text):
                found._number(name, value)
            for name, body in _ENUM.findall(text):
                found._enum(name, body)
        for text in plain:
            for name, body, attributes in _STRUCT.findall(text):
                found._struct(name, body, packed="packed" in attributes)
        return found

    def value(self, text: str) -> int | None:
        """What an expression is, if it is one of plain numbers and of names known here."""
        text = re.sub(r"UINT64_C\((\w+)\)", r"\1", text)
        text = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", text)
        text = re.sub(r"\b[A-Za-z_]\w*", lambda name: str(self.numbers.get(name[0], name[0])), text).strip()
        if not text or _ARITHMETIC.fullmatch(text) is None:
            return None
        return int(eval(text)) & (1 << 64) - 1  # numbers of our own files

    def _number(self, name: str, text: str) -> None:
        value = self.value(text)
        if value is not None:
            assert self.numbers.setdefault(name, value) == value, f"{name} is defined twice"

    def _enum(self, name: str, body: str) -> None:
        at, members = 0, {}
        for item in filter(None, map(str.strip, body.split(","))):
            member, _, text = item.partition("=")
            value = self.value(text) if text else at
            assert value is not None, f"enum {name}: {item}"
            members[member.strip()] = self.numbers[member.strip()] = value
            at = value + 1
        self.enums[name] = members

    def _struct(self, name: str, body: str, *, packed: bool) -> None:
        members: list[tuple[str, Any]] = []
        for line in filter(None, map(str.strip, body.split(";"))):
            kind, _, names = line.removeprefix("struct ").partition(" ")
            if kind not in _TYPES:
                return  # the kernel's own types: no other side knows this structure
            for item in names.split(","):
                found = _MEMBER.fullmatch(item.strip())
                if found is None:
                    return
                length = None if found[2] is None else self.value(found[2]) if found[2] else 0
                members.append((found[1], _TYPES[kind] if length is None else _TYPES[kind] * length))
        layout = type(
            name,
            (ctypes.LittleEndianStructure,),
            {"_pack_": 1, "_fields_": members} if packed else {"_fields_": members},
        )
        self.structs[name] = {
            member: Member(getattr(layout, member).offset, getattr(layout, member).size) for member, _ in members
        }
        self.sizes[name] = ctypes.sizeof(layout)
        _TYPES[name] = layout
