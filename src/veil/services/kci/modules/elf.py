# SPDX-License-Identifier: GPL-2.0-or-later
"""A module's ELF file (System V gABI, relocatable x86-64), read once and checked whole.

The checks are those of Linux's elf_validity_cache_copy (kernel/module/main.c), and more: sections do not overlap, what
the loader looks up by name is there at most once, and every count, size and alignment has a bound. What is read later
stays within what was checked here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt

from veil.formats.elf_headers import ELF_HEADER, ELF_MAGIC, EM_X86_64, ET_REL, SECTION_HEADER
from veil.services.kci.modules.errors import ModuleRefused

__all__ = [
    "RELOCATION",
    "ModuleElf",
    "Section",
    "SectionFlag",
    "SectionType",
    "SpecialIndex",
]

#: magic, ELFCLASS64, ELFDATA2LSB, EV_CURRENT, ABI System V or Linux's
_IDENT = ELF_MAGIC + b"\x02\x01\x01\x00"
_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"),
                    ("size", "<u8")])  # fmt: skip
#: Elf64_Rela
RELOCATION = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

_MAX_ALIGNMENT = 4096
#: drivers with many devices have 70 KB
_MAX_MODINFO = 1 << 20
#: The largest modules have 50,000; with names of the greatest length they would take 70 MB here.
_MAX_SYMBOLS = 1 << 17
#: KSYM_NAME_LEN
_MAX_NAME = 512
#: MODULE_NAME_LEN
_MAX_MODULE_NAME = 55

_SYMBOLS, _MODINFO, _THIS_MODULE = ".symtab", ".modinfo", ".gnu.linkonce.this_module"
#: The loader takes the first section of a name, or the last one. There must be one.
_ONCE = frozenset({
    _MODINFO, _THIS_MODULE, "__versions", "__version_ext_crcs", "__version_ext_names", ".data..percpu",
    ".data..ro_after_init", "__jump_table", "__ksymtab", "__ksymtab_gpl", "__ksymtab_strings", "__kcrctab",
    "__kcrctab_gpl", "__kflagstab", "__ex_table", "__mcount_loc", "__param", "__bug_table", ".static_call_sites",
    ".altinstructions", ".altinstr_replacement", ".smp_locks", ".orc_unwind", ".orc_unwind_ip", ".orc_header",
    ".retpoline_sites", ".return_sites", ".call_sites", ".cfi_sites", ".ibt_endbr_seal", ".noinstr.text",
    ".kprobes.text", ".static_call.text", "__tracepoints_ptrs",
})  # fmt: skip
_GPL_COMPATIBLE = frozenset({
    "GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL",
})  # fmt: skip


class SectionType(IntEnum):
    """`sh_type`, as far as it matters."""

    NULL = 0
    PROGBITS = 1
    SYMTAB = 2
    STRTAB = 3
    RELA = 4
    NOTE = 7
    NOBITS = 8
    REL = 9


class SectionFlag(IntFlag):
    """`sh_flags`; the last two are Linux's (include/linux/elf.h, include/linux/livepatch.h)."""

    WRITE = 1 << 0
    ALLOC = 1 << 1
    EXECINSTR = 1 << 2
    COMPRESSED = 1 << 11
    RELA_LIVEPATCH = 1 << 20
    RO_AFTER_INIT = 1 << 21


class SpecialIndex(IntEnum):
    """`st_shndx` with a meaning of its own."""

    UNDEF = 0
    LORESERVE = 0xFF00
    ABS = 0xFFF1


# Plain numbers: enumerations are slow.
_ALLOC, _STRANGE = int(SectionFlag.ALLOC), int(SectionFlag.COMPRESSED | SectionFlag.RELA_LIVEPATCH)


@dataclass(frozen=True)
class Section:
    """A section header; `offset` and `size` lie within the file unless it is NOBITS or NULL."""

    index: int
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int

    @property
    def allocated(self) -> bool:
        """Does the file ask for memory for it? (The loader has its own mind about a few.)"""
        return bool(self.flags & _ALLOC)

    @property
    def end(self) -> int:
        """After its last byte in the file."""
        return self.offset + self.size


class ModuleElf:
    """A module's sections, symbols and relocations. Raises ModuleRefused."""

    def __init__(self, body: bytes | memoryview) -> None:
        self._body = memoryview(body)
        self.sections = self._read_sections()
        self._by_name = _first_by_name(self.sections)
        symbols = [section for section in self.sections if section.type == SectionType.SYMTAB]
        if len(symbols) != 1:
            raise ModuleRefused(f"the module has {len(symbols)} symbol tables")
        self.symbol_table = symbols[0]
        self.symbols = self._read_symbols()
        self.modinfo = self._read_modinfo()
        this = self.section(_THIS_MODULE)
        if this is None or this.type == SectionType.NOBITS or not this.allocated:
            raise ModuleRefused(f"the module has no {_THIS_MODULE}")

    # What it says of itself

    @property
    def name(self) -> str:
        """The module's name, as the kernel lists it."""
        return self.modinfo["name"]

    @property
    def may_use_gpl(self) -> bool:
        """Whether its licence lets it use symbols exported with EXPORT_SYMBOL_GPL (include/linux/license.h)."""
        return self.modinfo.get("license") in _GPL_COMPATIBLE

    # Sections

    def section(self, name: str) -> Section | None:
        """The first of a name."""
        return self._by_name.get(name)

    def contents(self, section: Section) -> memoryview:
        """Its bytes in the file; none if it is NOBITS."""
        if section.type in (SectionType.NOBITS, SectionType.NULL):
            return self._body[:0]
        return self._body[section.offset : section.end]

    def relocations(self, section: Section) -> npt.NDArray[np.void]:
        """Of a section of type RELA: offset, type, symbol, addend."""
        if section.size % RELOCATION.itemsize or section.link != self.symbol_table.index:
            raise ModuleRefused(f"{section.name} is not a relocation section for this symbol table")
        return np.frombuffer(self.contents(section), RELOCATION)

    # Symbols

    def symbol_name(self, index: int) -> str:
        """Of the symbol with this number."""
        return _text(self._strings, int(self.symbols["name"][index]), _MAX_NAME, "a symbol's name")

    # Reading

    def _read_sections(self) -> tuple[Section, ...]:
        body = self._body
        if len(body) < ELF_HEADER.size:
            raise ModuleRefused("the module ends within its ELF header")
        ident, kind, machine, _, _, _, table, _, _, _, _, entry, count, names = ELF_HEADER.unpack_from(body)
        if not ident.startswith(_IDENT) or (kind, machine) != (ET_REL, EM_X86_64):
            raise ModuleRefused("the module is not a relocatable ELF file for x86-64")
        if entry != SECTION_HEADER.size or not 0 < count < SpecialIndex.LORESERVE or not 0 < names < count:
            raise ModuleRefused(f"the module's section table has {count} entries of {entry} bytes, names in {names}")
        if table + count * SECTION_HEADER.size > len(body):
            raise ModuleRefused("the module's section table lies outside the file")
        headers = list(SECTION_HEADER.iter_unpack(body[table : table + count * SECTION_HEADER.size]))
        if any(headers[0]):
            raise ModuleRefused("the module's section 0 is not empty")
        _check_headers(headers, len(body), table)
        return _name_sections(headers, self._string_table(headers[names]))

    def _string_table(self, header: tuple[int, ...]) -> bytes:
        _, kind, _, _, offset, size, *_ = header
        table = bytes(self._body[offset : offset + size])
        if kind != SectionType.STRTAB or not table or table[0] or table[-1]:
            raise ModuleRefused("a string table of the module does not begin and end with 0")
        return table

    def _read_symbols(self) -> npt.NDArray[np.void]:
        section = self.symbol_table
        if section.size % _SYMBOL.itemsize or not 0 < section.size <= _MAX_SYMBOLS * _SYMBOL.itemsize:
            raise ModuleRefused(f"the module's symbol table has {section.size} bytes")
        symbols = np.frombuffer(self.contents(section), _SYMBOL)
        if not 0 < section.link < len(self.sections):
            raise ModuleRefused("the module's symbols have no string table")
        strings = self.sections[section.link]
        header = (0, strings.type, 0, 0, strings.offset, strings.size)
        self.string_section, self._strings = strings, self._string_table(header)
        if np.any(symbols["name"] >= len(self._strings)):
            raise ModuleRefused("a symbol's name lies outside the module's strings")
        special = symbols["section"] >= SpecialIndex.LORESERVE
        if np.any((symbols["section"] >= len(self.sections)) & ~special):
            raise ModuleRefused("a symbol lies in a section that is not there")
        return symbols

    def _read_modinfo(self) -> Mapping[str, str]:
        section = self.section(_MODINFO)
        if section is None or section.type != SectionType.PROGBITS or section.size > _MAX_MODINFO:
            raise ModuleRefused(f"the module has no {_MODINFO}, or one of more than {_MAX_MODINFO} bytes")
        found: dict[str, str] = {}
        for line in bytes(self.contents(section)).split(b"\0"):
            key, equals, value = line.decode("utf-8", "replace").partition("=")
            if equals:
                found.setdefault(key, value)  # the kernel takes the first, too
        name = found.get("name", "")
        if not 0 < len(name) <= _MAX_MODULE_NAME or not name.replace("_", "a").isalnum() or not name.isascii():
            raise ModuleRefused(f"{_MODINFO} names no module")
        if "livepatch" in found:
            raise ModuleRefused(f"{name} is a livepatch: it is made to change the kernel's text")
        return found


def _check_headers(headers: list[tuple[int, ...]], length: int, table: int) -> None:
    """Bounds, and that no byte of the file belongs to two sections, the header or the section table."""
    taken = [(0, ELF_HEADER.size), (table, table + len(headers) * SECTION_HEADER.size)]
    for index, (_, kind, flags, _, offset, size, _, _, alignment, _) in enumerate(headers):
        if kind == SectionType.NULL:
            if flags:
                raise ModuleRefused(f"section {index} is of no type, and has flags")
            continue
        if alignment & (alignment - 1) or alignment > _MAX_ALIGNMENT:
            raise ModuleRefused(f"section {index} wants to be aligned to {alignment}")
        if flags & _STRANGE:
            raise ModuleRefused(f"section {index} is compressed, or for a livepatch")
        if size and kind != SectionType.NOBITS:
            if offset + size > length:
                raise ModuleRefused(f"section {index} lies outside the file")
            taken.append((offset, offset + size))
    taken.sort()
    for before, after in itertools.pairwise(taken):
        if before[1] > after[0]:
            raise ModuleRefused(f"sections overlap in the file at byte {after[0]}")


def _name_sections(headers: list[tuple[int, ...]], names: bytes) -> tuple[Section, ...]:
    made = []
    for index, (name, kind, flags, _, offset, size, link, info, alignment, _) in enumerate(headers):
        text = _text(names, name, _MAX_NAME, "a section's name") if kind != SectionType.NULL else ""
        made.append(Section(index, text, kind, flags, offset, size, link, info, alignment))
    return tuple(made)


def _first_by_name(sections: tuple[Section, ...]) -> dict[str, Section]:
    found: dict[str, Section] = {}
    for section in sections[1:]:
        if section.name in found and section.name in _ONCE:
            raise ModuleRefused(f"the module has two sections {section.name}")
        found.setdefault(section.name, section)
    return found


def _text(table: bytes, at: int, longest: int, what: str) -> str:
    """The string at an offset. Only so far is looked for its end: many long names would take for ever."""
    end = table.find(b"\0", at, at + longest + 1)
    if at >= len(table) or end < 0:
        raise ModuleRefused(f"{what} is longer than {longest} bytes, or lies outside its table")
    try:
        return table[at:end].decode("ascii")
    except UnicodeDecodeError as error:
        raise ModuleRefused(f"{what} is not ASCII") from error
