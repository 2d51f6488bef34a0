# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocate a module's sections (Linux, kernel/module/main.c: simplify_symbols, apply_relocations;
arch/x86/kernel/module.c: apply_relocate_add; x86-64 psABI, section 4.4)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from veil.services.kci.modules.elf import RELOCATION, ModuleElf, Section, SectionType, SpecialIndex
from veil.services.kci.modules.errors import ModuleRefused
from veil.services.kci.modules.exports import ExportedSymbols
from veil.services.kci.modules.layout import Layout

__all__ = ["SymbolValues", "relocate"]

_WEAK = 2


class _Type(NamedTuple):
    name: str
    size: int
    relative: bool
    lowest: int
    """Bounds of the value, with a sign; for eight bytes there are none."""
    highest: int


_TYPES = {
    1: _Type("R_X86_64_64", 8, False, -1 << 63, (1 << 63) - 1),
    2: _Type("R_X86_64_PC32", 4, True, -1 << 31, (1 << 31) - 1),
    4: _Type("R_X86_64_PLT32", 4, True, -1 << 31, (1 << 31) - 1),
    10: _Type("R_X86_64_32", 4, False, 0, (1 << 32) - 1),
    11: _Type("R_X86_64_32S", 4, False, -1 << 31, (1 << 31) - 1),
    24: _Type("R_X86_64_PC64", 8, True, -1 << 63, (1 << 63) - 1),
}

_Words = npt.NDArray[np.uint64]


class SymbolValues:
    """What the symbols of a module are worth where it lies."""

    def __init__(
        self, elf: ModuleElf, layout: Layout, addresses: Mapping[int, int], percpu: int, exported: ExportedSymbols
    ) -> None:
        """`addresses` of the sections that are kept, by number; `percpu`: the offset of the per-CPU variables."""
        self._elf = elf
        self._exported = exported
        places = np.zeros(len(elf.sections), np.uint64)
        placed = np.zeros(len(elf.sections), np.bool_)
        for index, address in addresses.items():
            places[index], placed[index] = address, True
        if layout.percpu:
            places[layout.percpu], placed[layout.percpu] = percpu, True
        section = elf.symbols["section"].astype(np.intp)
        ordinary = section < SpecialIndex.LORESERVE
        inside = np.where(ordinary, section, 0)
        self._values: _Words = elf.symbols["value"] + np.where(ordinary, places[inside], np.uint64(0))
        self._known = np.where(ordinary, placed[inside], section == SpecialIndex.ABS)
        self._section = section
        self.external: dict[str, int] = {}
        """What was found among exported symbols, so far."""

    def of(self, numbers: npt.NDArray[np.uint32]) -> _Words:
        """Values of the symbols with these numbers, 64 bits. Raises ModuleRefused for one that has none."""
        if np.any(numbers >= len(self._values)):
            raise ModuleRefused("a relocation names a symbol that is not there")
        for number in np.unique(numbers[~self._known[numbers]]).tolist():
            self._values[number] = self._resolve(number)
            self._known[number] = True
        return self._values[numbers]

    def defined(self) -> dict[str, int]:
        """Named symbols in sections that are kept: what a person or a patch table calls by name."""
        found: dict[str, int] = {}
        chosen = self._known & (self._section != 0) & (self._section < SpecialIndex.LORESERVE)
        for number in np.nonzero(chosen & (self._elf.symbols["name"] != 0))[0].tolist():
            found.setdefault(self._elf.symbol_name(number), int(self._values[number]))
        return found

    def _resolve(self, number: int) -> int:
        section = int(self._section[number])
        name = self._elf.symbol_name(number)
        if section != SpecialIndex.UNDEF:
            where = self._elf.sections[section].name if section < SpecialIndex.LORESERVE else f"{section:#x}"
            raise ModuleRefused(f"a relocation is against {name or 'a symbol'} in {where}, which has no memory")
        value = self._exported.resolve(name, gpl=self._elf.may_use_gpl) if name else None
        if value is not None:
            self.external[name] = value
            return value
        if name and self._elf.symbols["info"][number] >> 4 == _WEAK and not self._elf.symbols["value"][number]:
            return 0
        raise ModuleRefused(f"nobody exports {name or 'a symbol without a name'} to this module")


def relocate(elf: ModuleElf, addresses: Mapping[int, int], values: SymbolValues) -> dict[int, bytes]:
    """Contents of every section that has an address and bytes in the file, relocated; by section number.
    Raises ModuleRefused."""
    kept = [index for index in addresses if elf.sections[index].type != SectionType.NOBITS]
    data = np.frombuffer(b"".join(elf.contents(elf.sections[index]) for index in kept), np.uint8).copy()
    ends = list(itertools.accumulate(elf.sections[index].size for index in kept))
    starts = dict(zip(kept, (0, *ends), strict=False))
    sites = _Sites(elf, addresses, starts)
    sites.check()
    results = values.of(sites.relocations["symbol"]) + sites.relocations["addend"].astype(np.uint64)
    for number, kind in _TYPES.items():
        chosen = sites.relocations["type"] == number
        if np.any(chosen):
            sites.apply(data, kind, chosen, results[chosen])
    return {index: data[starts[index] : end].tobytes() for index, end in zip(kept, ends, strict=True)}


class _Sites:
    """All relocations of the sections that are kept, in one array; with where each changes the joined contents."""

    def __init__(self, elf: ModuleElf, addresses: Mapping[int, int], starts: Mapping[int, int]) -> None:
        found = [(section, elf.sections[section.info]) for section in _relocation_sections(elf, addresses, starts)]
        arrays = [elf.relocations(section) for section, _ in found]
        self.relocations: npt.NDArray[np.void] = np.concatenate([np.empty(0, RELOCATION), *arrays])
        self._names = [section.name for section, _ in found]
        counts = [len(array) for array in arrays]
        self._section = np.repeat(np.arange(len(found)), counts)
        self._limits: _Words = np.repeat(np.array([target.size for _, target in found], np.uint64), counts)
        self._starts: _Words = np.repeat(np.array([starts[target.index] for _, target in found], np.uint64), counts)
        bases = np.repeat(np.array([addresses[target.index] for _, target in found], np.uint64), counts)
        self._addresses: _Words = bases + self.relocations["offset"]

    def check(self) -> None:
        """Types, bounds, and that none changes what another one changed."""
        types, offsets = self.relocations["type"], self.relocations["offset"]
        sizes = np.zeros(len(types), np.uint64)
        for number, kind in _TYPES.items():
            sizes[types == number] = kind.size
        self._refuse(sizes == 0, "a relocation is of a type that modules do not have")
        # Not offset + size, which could wrap.
        self._refuse((sizes > self._limits) | (offsets > self._limits - sizes), "a relocation lies outside its section")
        places = np.sort(self._starts + offsets)
        order = np.argsort(self._starts + offsets)
        overlaps = np.zeros(len(types), np.bool_)
        overlaps[order[1:]] = places[1:] < (places + sizes[order])[:-1]
        self._refuse(overlaps, "two relocations change the same bytes")

    def apply(self, data: npt.NDArray[np.uint8], kind: _Type, chosen: npt.NDArray[np.bool_], results: _Words) -> None:
        """Write those of one type."""
        if kind.relative:
            results = results - self._addresses[chosen]
        signed = results.astype(np.int64)
        wrong = np.zeros(len(chosen), np.bool_)
        wrong[chosen] = (signed < kind.lowest) | (signed > kind.highest)
        self._refuse(wrong, f"the value of a relocation {kind.name} does not fit")
        at = self._starts[chosen] + self.relocations["offset"][chosen]
        places = at.astype(np.intp)[:, None] + np.arange(kind.size)
        # The loader refuses that, too: the file's bytes would be lost.
        wrong[chosen] = np.any(data[places], axis=1)
        self._refuse(wrong, "a relocation changes bytes that are not 0")
        data[places] = results.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : kind.size]

    def _refuse(self, wrong: npt.NDArray[np.bool_], why: str) -> None:
        if np.any(wrong):
            first = int(np.argmax(wrong))
            offset = int(self.relocations["offset"][first])
            raise ModuleRefused(f"{self._names[self._section[first]]}: {why}, at offset {offset:#x}")


def _relocation_sections(elf: ModuleElf, addresses: Mapping[int, int], starts: Mapping[int, int]) -> Iterator[Section]:
    """Those that the loader applies to memory that is checked."""
    seen: set[int] = set()
    for section in elf.sections[1:]:
        if section.type == SectionType.REL:
            raise ModuleRefused(f"{section.name} has relocations without addends")
        if section.type != SectionType.RELA:
            continue
        if not 0 < section.info < len(elf.sections):
            raise ModuleRefused(f"{section.name} changes a section that is not there")
        if section.info in (elf.symbol_table.index, elf.string_section.index):
            raise ModuleRefused(f"{section.name} changes the symbols")  # they have memory, by the loader's wish
        if section.info not in addresses:
            continue
        if section.info in seen or section.info not in starts:
            raise ModuleRefused(f"{section.name} changes a section that is empty, or was relocated already")
        seen.add(section.info)
        yield section
