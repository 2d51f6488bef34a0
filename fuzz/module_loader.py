# SPDX-License-Identifier: GPL-2.0-or-later
"""A loader of modules, of few lines and without any of VeilS-KCI's code: what the memory of one must be."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from fuzz.modules import EXPORTED, SPACE, memory_of
from veil.formats.kci import MemoryType, ModuleMemory

__all__ = ["CannotLoad", "LoadedModule", "load_module"]

_ORDERS = ((4, 0, 0, 4), (0, 1, 2, 6), (1 << 21, 0, 3, None), (1, 0, 1, 5), (0, 0, 1, 5))
_SIZES = {1: 8, 2: 4, 4: 4, 10: 4, 11: 4, 24: 8}


class CannotLoad(Exception):
    """Linux would not, or this loader does not know how."""


class _Sections:
    """A module's sections, by the System V gABI; reads nothing outside of the file."""

    def __init__(self, file: bytes) -> None:
        self.file = file
        table, count, names = (*struct.unpack_from("<Q", file, 40), *struct.unpack_from("<HH", file, 60))
        self.all = [struct.unpack_from("<IIQQQQIIQQ", file, table + 64 * number) for number in range(count)]
        self.names = [self.text(self.all[names], section[0]) for section in self.all]

    def text(self, strings: tuple[int, ...], at: int) -> str:
        start = strings[4] + at
        return self.file[start : self.file.index(b"\0", start)].decode()

    def data(self, number: int) -> bytes:
        kind, offset, size = (self.all[number][field] for field in (1, 4, 5))
        return bytes(size) if kind == 8 else self.file[offset : offset + size]


def _layout(sections: _Sections) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
    places: dict[int, tuple[int, int]] = {}
    sizes: dict[int, int] = {}
    unkept = (".modinfo", "__versions", "__version_ext_crcs", "__version_ext_names", ".data..percpu")
    for init in (False, True):
        for wanted, unwanted, core, early in _ORDERS:
            memory = early if init else core
            for number, (_, _, flags, _, _, size, _, _, align, _) in enumerate(sections.all):
                name = sections.names[number]
                if name in (".data..ro_after_init", "__jump_table"):
                    flags |= 1 << 21
                if not flags & 2 or name in unkept or number in places or name.startswith(".init") != init:
                    continue
                if memory is None or flags & wanted != wanted or flags & unwanted:
                    continue
                offset = -(-sizes.get(memory, 0) // (align or 1)) * (align or 1)
                places[number], sizes[memory] = (memory, offset), offset + size
                if offset + size > 1 << 22:
                    raise CannotLoad("too large")
    return places, sizes


class LoadedModule(NamedTuple):
    """A module as Linux would load it, before any patch."""

    memory: dict[MemoryType, ModuleMemory]
    images: dict[int, bytes]
    names: set[str]
    """Of its sections."""
    traced: list[int]
    """Where its functions may call a tracer."""

    def sound(self, kind: MemoryType, now: bytes) -> bool:
        """Is this its code, but for calls of tracers?"""
        ignored = {site - self.memory[kind].address + byte for site in self.traced for byte in range(5)}
        return all(at in ignored for at, byte in enumerate(now) if byte != self.images[kind][at])


def load_module(file: bytes) -> LoadedModule:
    """Raises CannotLoad."""
    try:
        sections = _Sections(file)
        places, sizes = _layout(sections)
        memory = memory_of(sizes)
        addresses = {number: memory[MemoryType(kind)].address + offset for number, (kind, offset) in places.items()
                     if MemoryType(kind) in memory}  # fmt: skip
        contents = {number: bytearray(sections.data(number)) for number in addresses}
        for number, section in enumerate(sections.all):
            if section[1] == 4 and section[7] in addresses:
                _relocate(sections, number, contents[section[7]], addresses)
        images = {int(kind): bytearray(place.size) for kind, place in memory.items()}
        for number, content in contents.items():
            kind, offset = places[number]
            images[kind][offset : offset + len(content)] = _ordered(sections.names[number], bytes(content))
    except (struct.error, IndexError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise CannotLoad(repr(error)) from error
    traced = [site for number, content in contents.items() if sections.names[number] == "__mcount_loc"
              for (site,) in struct.iter_unpack("<Q", content[: len(content) // 8 * 8])]  # fmt: skip
    return LoadedModule(memory, {kind: bytes(image) for kind, image in images.items()}, set(sections.names), traced)


def _relocate(sections: _Sections, number: int, content: bytearray, addresses: Mapping[int, int]) -> None:
    target = sections.all[number][7]
    symbols = sections.all[sections.all[number][6]]
    strings = sections.all[symbols[6]]
    table = sections.data(number)
    for at in range(0, len(table), 24):
        offset, kind, symbol, addend = struct.unpack_from("<QIIq", table, at)
        name, _, _, where, value, _ = struct.unpack_from("<IBBHQQ", sections.file, symbols[4] + 24 * symbol)
        if where == 0:
            value = EXPORTED(sections.text(strings, name))
        elif where != 0xFFF1:
            percpu = sections.names[where] == ".data..percpu"
            value += SPACE.percpu.start if percpu else addresses[where]
        value += addend
        if kind in (2, 4, 24):
            value -= addresses[target] + offset
        size = _SIZES[kind]
        content[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _ordered(name: str, content: bytes) -> bytes:
    if name == "__mcount_loc":
        return b"".join(
            each.to_bytes(8, "little") for each in sorted(each for (each,) in struct.iter_unpack("<Q", content))
        )
    if name == "__ex_table":
        entries = [(12 * number, *entry) for number, entry in enumerate(struct.iter_unpack("<iii", content))]
        entries.sort(key=lambda entry: entry[0] + entry[1])
        moved = b""
        for at, code, fixup, data in entries:
            by = at - len(moved)
            moved += struct.pack("<iii", code + by, fixup + by, data)
        return moved
    return content
