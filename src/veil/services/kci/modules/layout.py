# SPDX-License-Identifier: GPL-2.0-or-later
"""Where each section of a module lies in the memory that the kernel gave it (Linux, kernel/module/main.c:
rewrite_section_headers, layout_and_allocate, layout_sections; kernel/module/kallsyms.c: layout_symtab).

The kernel chooses the pieces of memory; everything within them follows from the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from veil.formats.errors import FormatError
from veil.formats.kci import MAX_MODULE_MEMORY, MemoryType, ModuleMemory, check_module_memory
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.kci.modules.elf import ModuleElf, Section, SectionFlag, SectionType
from veil.services.kci.modules.errors import ModuleRefused

__all__ = ["CODE", "READ_ONLY", "RO_AFTER_INIT", "Layout", "check_memory", "lay_out"]

CODE = (MemoryType.TEXT, MemoryType.INIT_TEXT)
READ_ONLY = (MemoryType.RODATA, MemoryType.INIT_RODATA)

_WRITE, _EXECUTE, _LATER = map(int, (SectionFlag.WRITE, SectionFlag.EXECINSTR, SectionFlag.RO_AFTER_INIT))
#: layout_sections' masks: flags that must be there, flags that must not, type in core and in init memory
_ORDER = (
    (_EXECUTE, 0, MemoryType.TEXT, MemoryType.INIT_TEXT),
    (0, _WRITE, MemoryType.RODATA, MemoryType.INIT_RODATA),
    (_LATER, 0, MemoryType.RO_AFTER_INIT, None),
    (_WRITE, 0, MemoryType.DATA, MemoryType.INIT_DATA),
    (0, 0, MemoryType.DATA, MemoryType.INIT_DATA),
)
_PERCPU = ".data..percpu"
_NOT_KEPT = (".modinfo", "__versions", "__version_ext_crcs", "__version_ext_names", _PERCPU)
#: Sections that are read-only after init, up to 6.15; from 6.16 on the kernel has a table of them.
RO_AFTER_INIT = frozenset({".data..ro_after_init", "__jump_table"})
_INIT = ".init"


@dataclass(frozen=True)
class Layout:
    """Places of the sections that are kept, by section number, and how much memory of each type they need together."""

    offsets: Mapping[int, tuple[MemoryType, int]]
    sizes: Mapping[MemoryType, int]
    percpu: int
    """Number of the per-CPU section, 0 without one."""


def lay_out(elf: ModuleElf, later: Collection[str] = RO_AFTER_INIT) -> Layout:
    """As the kernel does, which makes the sections of these names read-only `later`. Raises ModuleRefused for sections
    that no module of a distribution has."""
    offsets: dict[int, tuple[MemoryType, int]] = {}
    sizes: dict[MemoryType, int] = {}
    kept = dict(_kept_sections(elf, later))
    for init in (False, True):
        for wanted, unwanted, core_type, init_type in _ORDER:
            kind = init_type if init else core_type
            if kind is None:
                continue
            for index, (section, flags) in kept.items():
                if index in offsets or section.name.startswith(_INIT) != init:
                    continue
                if flags & wanted != wanted or flags & unwanted:
                    continue
                offset = _align(sizes.get(kind, 0), section.alignment)
                sizes[kind] = offset + section.size
                offsets[index] = (kind, offset)
                if sizes[kind] > MAX_MODULE_MEMORY:
                    raise ModuleRefused(f"the module's sections need more than {MAX_MODULE_MEMORY} bytes")
    percpu = elf.section(_PERCPU)
    return Layout(offsets, sizes, percpu.index if percpu is not None and percpu.allocated else 0)


def check_memory(elf: ModuleElf, layout: Layout, memory: Mapping[MemoryType, ModuleMemory], area: range) -> None:
    """Does the memory that the kernel gave fit the layout, within the addresses where modules are (`area`)? Else raise
    ModuleRefused.

    Data may be larger: the kernel puts a symbol table after it, whose size depends on the kernel's configuration.
    """
    try:
        check_module_memory(memory)
    except FormatError as error:
        raise ModuleRefused(str(error)) from error
    symbols = 2 * (elf.symbol_table.size + elf.string_section.size) + PAGE_SIZE
    for kind in MemoryType:
        size = _align(layout.sizes.get(kind, 0), PAGE_SIZE)
        place = memory.get(kind, ModuleMemory(area.start, 0))
        most = _align(size + symbols, PAGE_SIZE) if kind in (MemoryType.DATA, MemoryType.INIT_DATA) else size
        if not size <= place.size <= most:
            raise ModuleRefused(f"{kind.name} of the module has {place.size:#x} bytes, and must have {size:#x}")
        if place.address < area.start or place.end > area.stop:
            raise ModuleRefused(f"{kind.name} of the module at {place.address:#x} is not where modules are")


def _kept_sections(elf: ModuleElf, later: Collection[str]) -> Iterator[tuple[int, tuple[Section, int]]]:
    """Sections that get memory by the file's wish, with their flags as the loader changes them."""
    for section in elf.sections[1:]:
        if not section.allocated or section.name in _NOT_KEPT:
            continue
        if section in (elf.symbol_table, elf.string_section):
            raise ModuleRefused("the module's symbol table asks for memory")
        if section.flags & _EXECUTE and section.flags & _WRITE:
            raise ModuleRefused(f"{section.name} is writable and executable")  # module_enforce_rwx_sections
        if section.type == SectionType.NOBITS and not section.flags & _WRITE:
            raise ModuleRefused(f"{section.name} is not writable, and empty")
        if section.type in (SectionType.NULL, SectionType.RELA, SectionType.REL):
            raise ModuleRefused(f"{section.name} asks for memory, and is of type {section.type}")
        flags = section.flags | (_LATER if section.name in later else 0)
        yield section.index, (section, flags)


def _align(size: int, alignment: int) -> int:
    return -(-size // (alignment or 1)) * (alignment or 1)
