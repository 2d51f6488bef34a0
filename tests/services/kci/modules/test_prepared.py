# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module's memory must be, and modules that are made to break whoever reads them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.kci.modules.made_module import (
    KERNEL,
    MEMORY,
    NOBITS,
    PERCPU,
    REL,
    RELA,
    STRTAB,
    A,
    MadeModule,
    MadeSection,
    W,
    X,
)
from veil.formats.kci import MemoryType, ModuleMemory
from veil.services.kci.modules import (
    AdmittedFile,
    ExportedSymbols,
    ModuleRefused,
    ModuleSpace,
    Prepared,
    prepare,
)

_SPACE = ModuleSpace(range(0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000), range(PERCPU, PERCPU + 0x2000))
_TEXT, _RODATA, _DATA, _INIT_TEXT = (
    MEMORY[kind].address for kind in (MemoryType.TEXT, MemoryType.RODATA, MemoryType.DATA, MemoryType.INIT_TEXT)
)
_PRINTK = KERNEL.anyone["printk"]


def _prepare(
    module: MadeModule | bytes,
    memory: Mapping[MemoryType, ModuleMemory] = MEMORY,
    percpu: int = 0,
    exported: ExportedSymbols | None = None,
) -> Prepared:
    body = module if isinstance(module, bytes) else module.build()
    admitted = AdmittedFile(body, bytes(32), None)
    return prepare(admitted, memory, percpu, exported or ExportedSymbols(KERNEL), _SPACE)


def _refused(module: MadeModule | bytes, why: str, **where: Mapping[MemoryType, ModuleMemory] | int) -> None:
    with pytest.raises(ModuleRefused, match=why):
        _prepare(module, **where)  # type: ignore[arg-type]


def _signed(value: int) -> bytes:
    return struct.pack("<i", value)


def test_a_module() -> None:
    prepared = _prepare(MadeModule())
    assert (prepared.name, prepared.version, prepared.vermagic) == ("made", "1.0", "6.12 SMP")
    text = b"\xe8" + _signed(_PRINTK - (_TEXT + 5)) + b"\x48\xc7\xc0" + _signed(_RODATA + 4 - (1 << 64)) + b"\xc3"
    assert prepared.images[MemoryType.TEXT] == text.ljust(0x1000, b"\0")
    assert prepared.images[MemoryType.INIT_TEXT] == b"\x90\xc3".ljust(0x1000, b"\0")
    rodata = struct.pack("<Qq", _TEXT, _RODATA - (_RODATA + 8))
    assert prepared.images[MemoryType.RODATA] == rodata.ljust(0x1000, b"\0")
    assert set(prepared.images) == {MemoryType.TEXT, MemoryType.INIT_TEXT, MemoryType.RODATA}
    assert prepared.external == {"printk": _PRINTK}
    assert prepared.symbols == {"table": _RODATA, "function": _TEXT}
    assert prepared.sections[".data"].address == _DATA
    assert ".modinfo" not in prepared.sections


def test_layout() -> None:
    """In the file's order within a type, each aligned; .init by name; jump tables and their like apart."""
    module = (
        MadeModule()
        .with_section(".text.unlikely", data=b"\xc3" * 3, flags=A | X, alignment=1)
        .with_section(".init.rodata", data=b"init", alignment=4)
        .with_section("__jump_table", data=bytes(16), flags=A | W)
        .with_section(".data..ro_after_init", data=bytes(8), flags=A | W)
        .with_section(".rodata.str1.1", data=b"hello\0", alignment=1)
        .with_section(".rodata.cst16", data=bytes(16), alignment=16)
        .with_section("__versions", data=bytes(64))
        .with_section(".comment", data=b"a compiler", flags=0)
    )
    memory = {kind: ModuleMemory(0xFFFFFFFFC0200000 + 0x10000 * kind, 0x1000) for kind in MemoryType}
    sections = _prepare(module, memory).sections
    found = {
        name: (section.memory.name, section.address - memory[section.memory].address)
        for name, section in sections.items()
    }
    assert found == {
        ".text": ("TEXT", 0), ".text.unlikely": ("TEXT", 16), ".init.text": ("INIT_TEXT", 0),
        ".rodata": ("RODATA", 0), ".rodata.str1.1": ("RODATA", 16), ".rodata.cst16": ("RODATA", 32),
        ".data": ("DATA", 0), ".gnu.linkonce.this_module": ("DATA", 64), ".init.rodata": ("INIT_RODATA", 0),
        "__jump_table": ("RO_AFTER_INIT", 0), ".data..ro_after_init": ("RO_AFTER_INIT", 16),
    }  # fmt: skip


def test_tables_that_the_loader_sorts() -> None:
    """Faults' handlers by their instructions, whose distances change with their places; ftrace's sites."""
    module = MadeModule().with_section(".text", relocations=(), data=bytes(0x40))
    table = MadeSection(
        "__ex_table", bytes(24), alignment=4,
        relocations=((0, 2, "function", 0x30), (4, 2, "function", 4), (12, 2, "function", 0x10),
                     (16, 2, "function", 8)),
    )  # fmt: skip
    sites = MadeSection("__mcount_loc", bytes(16), relocations=((0, 1, "function", 0x20), (8, 1, "function", 0x10)))
    module = replace(module, sections=(*module.sections, table, sites))
    prepared = _prepare(module)
    image = prepared.images[MemoryType.RODATA]
    at = prepared.sections["__ex_table"].address
    first, fixup, _, second, other, _ = struct.unpack_from("<6i", image, at - _RODATA)
    assert [at + first, at + 4 + fixup, at + 12 + second, at + 16 + other] == [
        _TEXT + 0x10, _TEXT + 8, _TEXT + 0x30, _TEXT + 4
    ]  # fmt: skip
    sorted_sites = struct.unpack_from("<2Q", image, prepared.sections["__mcount_loc"].address - _RODATA)
    assert sorted_sites == (_TEXT + 0x10, _TEXT + 0x20)
    # In the table itself they stand as in the file.
    assert struct.unpack("<2Q", prepared.sections["__mcount_loc"].data) == (_TEXT + 0x20, _TEXT + 0x10)


# Symbols


@pytest.mark.parametrize(("flag", "place"), [(b"\0", "anyone"), (b"\1", "gpl_only")])
def test_exports_with_flags(flag: bytes, place: str) -> None:
    entries = MadeSection("__ksymtab", bytes(12), alignment=4, relocations=((0, 2, "function", 4), (4, 2, "names", 0)))
    names = MadeSection("__ksymtab_strings", b"\0made_function\0", alignment=1)
    module = MadeModule()

    def made(flags: bytes) -> MadeModule:
        sections = (*module.sections, entries, names, MadeSection("__kflagstab", flags, alignment=1))
        return replace(module, sections=sections).with_symbols(("names", "__ksymtab_strings", 1, 0))

    exports = _prepare(made(flag)).exports
    assert getattr(exports, place) == {"made_function": _TEXT + 4}
    assert len(exports.anyone) + len(exports.gpl_only) == 1
    with pytest.raises(ModuleRefused, match="1 symbols are exported, with flags for 2"):
        _prepare(made(flag * 2))


def test_exports_for_other_modules() -> None:
    entries = MadeSection(
        "__ksymtab_gpl", bytes(12), alignment=4, relocations=((0, 2, "function", 4), (4, 2, "names", 0))
    )
    names = MadeSection("__ksymtab_strings", b"\0made_function\0", alignment=1)
    module = MadeModule()
    module = replace(module, sections=(*module.sections, entries, names)).with_symbols(
        ("names", "__ksymtab_strings", 1, 0)
    )
    prepared = _prepare(module)
    assert prepared.exports.gpl_only == {"made_function": _TEXT + 4}

    exported = ExportedSymbols(KERNEL)
    exported.add("made", prepared.exports)
    user = MadeModule().with_section(".text", relocations=((1, 4, "made_function", -4),))
    user = user.with_symbols(("made_function", 0, 0, 0x10))
    memory = {kind: ModuleMemory(place.address + 0x1000000, place.size) for kind, place in MEMORY.items()}
    assert _prepare(user, memory, exported=exported).external == {"made_function": _TEXT + 4}
    for ask in (exported.check, exported.add):
        with pytest.raises(ModuleRefused, match="made runs already"):
            ask("made", prepared.exports)
    with pytest.raises(ModuleRefused, match="exports made_function, which is exported already"):
        exported.check("again", prepared.exports)
    exported.remove("made")
    with pytest.raises(ModuleRefused, match="nobody exports made_function"):
        _prepare(user, memory, exported=exported)


def test_symbols_for_the_gpl_only() -> None:
    module = MadeModule().with_section(".text", relocations=((1, 4, "gpl_function", -4),))
    module = module.with_symbols(("gpl_function", 0, 0, 0x10))
    assert _prepare(module).external == {"gpl_function": KERNEL.gpl_only["gpl_function"]}
    _refused(module.with_section(".modinfo", data=b"name=made\0license=Proprietary\0"), "nobody exports gpl_function")


def test_symbols_that_nobody_has() -> None:
    module = MadeModule().with_section(".text", relocations=((1, 4, "missing", -4),))
    _refused(module.with_symbols(("missing", 0, 0, 0x10)), "nobody exports missing")
    weak = _prepare(module.with_symbols(("missing", 0, 0, 0x20)))
    assert weak.images[MemoryType.TEXT][1:5] == struct.pack("<I", -(_TEXT + 5) & 0xFFFFFFFF)
    _refused(module.with_symbols(("missing", 0, 0x1234, 0x20)), "nobody exports missing")


@pytest.mark.parametrize(
    ("symbol", "why"),
    [
        (("strange", ".modinfo", 0, 0), "in .modinfo, which has no memory"),
        (("strange", 0xFFF2, 0, 0), "in 0xfff2, which has no memory"),  # SHN_COMMON
        (("strange", 0xFF20, 0, 0), "in 0xff20, which has no memory"),  # SHN_LIVEPATCH
        (("strange", 0x400, 0, 0), "a section that is not there"),
        (("", 0, 0, 0x10), "without a name"),
    ],
)
def test_symbols_without_an_address(symbol: tuple[str, int | str, int, int], why: str) -> None:
    module = MadeModule().with_symbols(symbol)
    _refused(module.with_section(".text", relocations=((1, 4, symbol[0], -4),)), why)


def test_absolute_symbols() -> None:
    module = MadeModule().with_symbols(("fixed", 0xFFF1, 0x1234, 0))
    text = _prepare(module.with_section(".text", relocations=((8, 11, "fixed", 0),))).images[MemoryType.TEXT]
    assert text[8:12] == _signed(0x1234)


def test_per_cpu_variables() -> None:
    module = (
        MadeModule()
        .with_section(".data..percpu", data=bytes(16), flags=A | W)
        .with_section(".text", relocations=((8, 11, "mine", 0),))
        .with_symbols(("mine", ".data..percpu", 8, 0))
    )
    prepared = _prepare(module, percpu=PERCPU + 0x100)
    assert prepared.images[MemoryType.TEXT][8:12] == _signed(PERCPU + 0x108)
    assert prepared.symbols["mine"] == PERCPU + 0x108
    # Not the kernel's own variables, not whatever else is below %gs, not where they would not be aligned.
    for percpu in (0, PERCPU - 16, PERCPU + 0x1FF8, PERCPU + 4, _DATA, (1 << 64) - 8):
        _refused(module, "per-CPU variables at", percpu=percpu)


# Where the kernel put it


def _elsewhere(kind: MemoryType, address: int = 0, size: int = 0x1000) -> dict[MemoryType, ModuleMemory]:
    memory = {**MEMORY, kind: ModuleMemory(address or MEMORY.get(kind, ModuleMemory(0, 0)).address, size)}
    return {key: place for key, place in memory.items() if place.size}


@pytest.mark.parametrize(
    ("memory", "why"),
    [
        (_elsewhere(MemoryType.TEXT, size=0x2000), "TEXT of the module has 0x2000 bytes, and must have 0x1000"),
        (_elsewhere(MemoryType.TEXT, size=0), "TEXT of the module has 0x0 bytes"),
        (_elsewhere(MemoryType.RODATA, size=0x2000), "RODATA of the module has 0x2000 bytes"),
        (_elsewhere(MemoryType.DATA, size=0), "DATA of the module has 0x0 bytes"),
        (_elsewhere(MemoryType.DATA, size=0x10000), "DATA of the module has 0x10000 bytes"),
        (_elsewhere(MemoryType.INIT_RODATA, 0xFFFFFFFFC0400000), "INIT_RODATA of the module has 0x1000 bytes"),
        (_elsewhere(MemoryType.TEXT, 0xFFFFFFFF81000000), "not where modules are"),
        (_elsewhere(MemoryType.DATA, 0xFFFFFFFFFF000000), "not where modules are"),
        (_elsewhere(MemoryType.TEXT, 0xFFFF888000000000), "not where modules are"),
        (_elsewhere(MemoryType.TEXT, _DATA), "overlaps"),
        (_elsewhere(MemoryType.TEXT, _TEXT + 8), "not whole pages"),
    ],
)  # fmt: skip
def test_memory_that_does_not_fit(memory: dict[MemoryType, ModuleMemory], why: str) -> None:
    _refused(MadeModule(), why, memory=memory)


# Relocations


@pytest.mark.parametrize(
    ("relocations", "why"),
    [
        (((14, 4, "printk", -4),), "outside its section, at offset 0xe"),
        (((0x1000, 1, "printk", 0),), "outside its section"),
        ((((1 << 64) - 4, 4, "printk", -4),), "outside its section"),
        ((((1 << 63), 1, "printk", -4),), "outside its section"),
        (((1, 4, "printk", -4), (3, 4, "printk", -4)), "two relocations change the same bytes"),
        (((1, 4, "printk", -4), (1, 4, "printk", -4)), "two relocations change the same bytes"),
        (((0, 4, "printk", -4),), "changes bytes that are not 0"),
        (((1, 9, "printk", -4),), "of a type that modules do not have"),  # GOTPCREL
        (((1, 0, "printk", -4),), "of a type that modules do not have"),
        (((1, 37, "printk", -4),), "of a type that modules do not have"),  # IRELATIVE
        (((1, 4, 77, -4),), "a symbol that is not there"),
        (((1, 4, 0xFFFFFFFF, -4),), "a symbol that is not there"),
        (((1, 4, "printk", 1 << 40),), "R_X86_64_PLT32 does not fit"),
        (((1, 2, "printk", -(1 << 63)),), "R_X86_64_PC32 does not fit"),
        (((8, 10, "printk", 0),), "R_X86_64_32 does not fit"),
        (((8, 11, "printk", 1 << 32),), "R_X86_64_32S does not fit"),
    ],
)
def test_hostile_relocations(relocations: tuple[tuple[int, int, int | str, int], ...], why: str) -> None:
    _refused(MadeModule().with_section(".text", relocations=relocations), why)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        (MadeSection(".rel.text", bytes(16), REL, 0, link=8, info=1), "without addends"),
        (MadeSection(".rela.again", bytes(24), RELA, 0, link=9, info=1), "relocated already"),
        (MadeSection(".rela.bss", bytes(24), RELA, 0, link=9, info=7), "a section that is empty"),
        (MadeSection(".rela.symtab", bytes(24), RELA, 0, link=9, info=9), "changes the symbols"),
        (MadeSection(".rela.strtab", bytes(24), RELA, 0, link=9, info=10), "changes the symbols"),
        (MadeSection(".rela.none", bytes(24), RELA, 0, link=9, info=99), "a section that is not there"),
        (MadeSection(".rela.none", bytes(24), RELA, 0, link=9, info=0), "a section that is not there"),
        (MadeSection(".rela.data", bytes(23), RELA, 0, link=9, info=5), "not a relocation section"),
        (MadeSection(".rela.data", bytes(24), RELA, 0, link=1, info=5), "not a relocation section"),
    ],
)
def test_hostile_relocation_sections(section: MadeSection, why: str) -> None:
    module = MadeModule()
    _refused(replace(module, sections=(*module.sections, section)), why)


def test_relocations_of_what_gets_no_memory_do_not_matter() -> None:
    debug = MadeSection(".debug_info", b"\xff" * 8, flags=0, relocations=((99, 77, 1, 0),))
    module = MadeModule()
    assert _prepare(replace(module, sections=(*module.sections, debug))).images == _prepare(module).images


# The file


def _header(at: int, form: str, value: int) -> MadeModule:
    return replace(MadeModule(), header=((at, struct.pack(form, value)),))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (b"", "ends within its ELF header"),
        (b"\x7fELF" + bytes(59), "ends within its ELF header"),
        (bytes(64), "not a relocatable ELF file"),
        (_header(4, "<B", 1), "not a relocatable ELF file"),  # 32 bits
        (_header(5, "<B", 2), "not a relocatable ELF file"),  # big endian
        (_header(16, "<H", 2), "not a relocatable ELF file"),  # a program
        (_header(18, "<H", 183), "not a relocatable ELF file"),  # for ARM
        (_header(0x28, "<Q", 1 << 40), "section table lies outside"),
        (_header(0x28, "<Q", (1 << 64) - 64), "section table lies outside"),
        (_header(0x28, "<Q", 64), "section 0 is not empty|overlap"),
        (_header(0x3A, "<H", 40), "entries of 40 bytes"),
        (_header(0x3C, "<H", 0), "0 entries"),
        (_header(0x3C, "<H", 0xFEFF), "section table lies outside"),
        (_header(0x3C, "<H", 0xFFFF), "65535 entries"),
        (_header(0x3E, "<H", 0), "names in 0"),
        (_header(0x3E, "<H", 0xFFFF), "names in 65535"),
        (_header(0x3E, "<H", 1), "does not begin and end with 0"),
    ],
)
def test_hostile_headers(module: MadeModule | bytes, why: str) -> None:
    _refused(module, why)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        (".rodata", {"offset": 64, "relocations": ()}, "sections overlap in the file"),
        (".rodata", {"offset": 0, "relocations": ()}, "sections overlap in the file"),
        (".rodata", {"size": 1 << 40}, "lies outside the file"),
        (".rodata", {"size": (1 << 64) - 1}, "lies outside the file"),
        (".rodata", {"offset": (1 << 64) - 8, "size": 16}, "lies outside the file"),
        (".rodata", {"alignment": 3}, "to be aligned to 3"),
        (".rodata", {"alignment": 1 << 63}, "to be aligned to"),
        (".rodata", {"kind": NOBITS}, "not writable, and empty|empty, or was relocated"),
        (".rodata", {"flags": A | 1 << 11}, "compressed"),
        (".rodata", {"flags": A | 1 << 20}, "for a livepatch"),
        (".rodata", {"kind": 0}, "of no type, and has flags"),
        (".text", {"flags": A | W | X}, "writable and executable"),
        (".text", {"kind": NOBITS, "relocations": ()}, "not writable, and empty"),
        (".bss", {"size": 1 << 60}, "need more than"),
        (".bss", {"size": (1 << 64) - 8}, "need more than"),
        (".bss", {"size": 0x1000}, "DATA of the module has 0x1000 bytes, and must have 0x2000"),
        (".modinfo", {"data": b"name=made\0" + b"alias=usb:v1\0" * 10000}, ""),
        (".modinfo", {"data": b"name=made\0" + b"alias=usb:v1\0" * 100000}, "one of more than"),
        (".modinfo", {"data": b"licence=GPL\0"}, "names no module"),
        (".modinfo", {"data": b"name=../made\0"}, "names no module"),
        (".modinfo", {"data": b"name=" + b"a" * 56 + b"\0"}, "names no module"),
        (".modinfo", {"data": b"name=made\0livepatch=Y\0"}, "a livepatch"),
        (".modinfo", {"name": ".other"}, "has no .modinfo"),
        (".gnu.linkonce.this_module", {"name": ".other"}, "has no .gnu.linkonce.this_module"),
        (".gnu.linkonce.this_module", {"flags": W}, "has no .gnu.linkonce.this_module"),
        ("a" * 600, {}, "a section's name is longer than 512"),
        ("\xff", {}, "is not ASCII"),
        (".another", {"kind": 2}, "2 symbol tables"),
        (".another", {"kind": RELA, "info": 1}, "of type 4"),
        (".another", {"kind": STRTAB, "data": b"x"}, ""),
    ],
)
def test_hostile_sections(name: str, changes: dict[str, object], why: str) -> None:
    if why:
        _refused(MadeModule().with_section(name, **changes), why)
    else:
        assert _prepare(MadeModule().with_section(name, **changes)).name == "made"


@pytest.mark.parametrize("name", [".altinstructions", "__mcount_loc", ".modinfo", ".data..percpu", ".return_sites"])
def test_what_is_looked_up_by_name_is_there_once(name: str) -> None:
    module = MadeModule().with_section(name)
    _refused(replace(module, sections=(*module.sections, MadeSection(name, flags=0))), f"two sections {name}")


def test_many_long_names_do_not_take_for_ever() -> None:
    """A thousand names that begin in a string of a million bytes."""
    module = MadeModule().build()
    count = 1000
    names = b"\0" + b"a" * 1_000_000 + b"\0"
    headers = bytearray(64)
    for number in range(count):
        headers += struct.pack("<IIQQQQIIQQ", number + 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    headers += struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(names), 0, 0, 0, 0)
    body = bytearray(module[:64]) + names
    struct.pack_into("<Q", body, 0x28, len(body))
    struct.pack_into("<2H", body, 0x3C, count + 2, count + 1)
    _refused(bytes(body + headers), "a section's name is longer than 512")


def test_too_many_symbols() -> None:
    _refused(MadeModule().with_symbols(*[("again", ".text", 0, 0)] * (1 << 17)), "symbol table has")


def test_memory_is_bounded_by_the_file() -> None:
    """Sizes that stand in the file alone cost nothing."""
    module = MadeModule().with_section(".bss", size=100 << 20).build()
    tracemalloc.start()
    try:
        _refused(module, "must have")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


_MADE = MadeModule().build()


@given(st.lists(st.tuples(st.integers(0, len(_MADE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutations(changes: list[tuple[int, int]]) -> None:
    """A listed file may be anything: it is refused, or all of it lies in its own memory."""
    module = bytearray(_MADE)
    for at, value in changes:
        module[at] = value
    try:
        prepared = _prepare(bytes(module))
    except ModuleRefused:
        return
    for section in prepared.sections.values():
        place = prepared.memory[section.memory]
        assert place.address <= section.address <= section.end <= place.end
    for kind, image in prepared.images.items():
        assert len(image) == prepared.memory[kind].size


@given(st.integers(0, len(_MADE) - 1))
def test_files_cut_short(length: int) -> None:
    with pytest.raises(ModuleRefused):
        _prepare(_MADE[:length])
