# SPDX-License-Identifier: GPL-2.0-or-later
"""From a module's file to what its memory must be: who vouches for it, and every byte of its code before patching."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from veil.formats.kci import MemoryType, ModuleMemory
from veil.services.kci.modules.elf import ModuleElf
from veil.services.kci.modules.errors import ModuleRefused
from veil.services.kci.modules.exports import ExportedSymbols, Exports, read_exports
from veil.services.kci.modules.kernel import ModuleSpace
from veil.services.kci.modules.layout import CODE, READ_ONLY, Layout, check_memory, lay_out
from veil.services.kci.modules.relocation import SymbolValues, relocate
from veil.services.kci.modules.signature import Keyring, Signer, split_signature, verify_signature
from veil.services.kci.modules.sorted_tables import sort_tables

__all__ = ["AdmittedFile", "Placed", "Prepared", "admit", "prepare"]

_UNWINDER = (".orc_unwind", ".orc_unwind_ip")


@dataclass(frozen=True)
class AdmittedFile:
    """A module's file for which somebody vouches whom the policy names."""

    body: bytes
    """The ELF file, without its signature."""
    digest: bytes
    """SHA-256 of the whole file."""
    signer: Signer | None
    """None if the policy lists the file's hash."""


def admit(file: bytes, keyring: Keyring, hashes: Collection[bytes] = ()) -> AdmittedFile:
    """Who vouches for a module's file (not compressed, with its signature)? Raises ModuleRefused if nobody does."""
    digest = hashlib.sha256(file).digest()
    if digest in hashes:
        # What is listed is listed whole; a signature in it need not be one that is known here.
        signed = split_signature(file)
        return AdmittedFile(bytes(signed[0]) if signed is not None else file, digest, None)
    signed = split_signature(file)
    if signed is None:
        raise ModuleRefused(f"the module is not signed, and its hash {digest.hex()} is not listed")
    body, message = signed
    return AdmittedFile(bytes(body), digest, verify_signature(body, message, keyring))


@dataclass(frozen=True)
class Placed:
    """A section where it lies: relocated, not patched."""

    name: str
    memory: MemoryType
    address: int
    data: bytes

    @property
    def end(self) -> int:
        """After its last byte."""
        return self.address + len(self.data)


@dataclass(frozen=True)
class Prepared:
    """A module as it must lie in memory, before the kernel patches it for the CPU at hand."""

    name: str
    version: str
    vermagic: str
    digest: bytes
    signer: Signer | None
    memory: Mapping[MemoryType, ModuleMemory]
    """Where all of it is; its code, and its data that is never written, are in `images`."""
    images: Mapping[MemoryType, bytes]
    """Whole pages of TEXT, INIT_TEXT, RODATA and INIT_RODATA, gaps and tails zero. The loader sorts a few tables in
    RODATA: so they are sorted here, but for `unordered`."""
    unordered: tuple[range, ...]
    """Addresses in RODATA of the unwinder's tables, whose order is the loader's own: nothing is said of these bytes."""
    sections: Mapping[str, Placed]
    """All sections with memory and content, by name; tables in the file's order. Of several sections of one name, which
    no table has, one is here."""
    symbols: Mapping[str, int]
    """Addresses of the module's own symbols by name, of per-CPU variables offsets."""
    external: Mapping[str, int]
    """Those of the kernel and other modules that it uses."""
    exports: Exports


def prepare(
    admitted: AdmittedFile,
    memory: Mapping[MemoryType, ModuleMemory],
    percpu: int,
    exported: ExportedSymbols,
    space: ModuleSpace,
) -> Prepared:
    """What a module's memory must be if it lies where the kernel says. Raises ModuleRefused.

    `percpu` is the offset of its per-CPU variables, the kernel's word like all addresses. It stands in code as part of
    operands: it must be where modules' variables can be, and is the same everywhere.
    """
    elf = ModuleElf(admitted.body)
    layout = lay_out(elf, space.later)
    check_memory(elf, layout, memory, space.addresses)
    _check_percpu(elf, layout, percpu, space.percpu)
    addresses = {index: memory[kind].address + offset for index, (kind, offset) in layout.offsets.items()
                 if kind in memory}  # fmt: skip
    values = SymbolValues(elf, layout, addresses, percpu, exported)
    contents = relocate(elf, addresses, values)
    sections = {
        elf.sections[index].name: Placed(elf.sections[index].name, layout.offsets[index][0], addresses[index], data)
        for index, data in contents.items()
    }
    return Prepared(
        elf.name,
        elf.modinfo.get("version", ""),
        elf.modinfo.get("vermagic", ""),
        admitted.digest,
        admitted.signer,
        dict(memory),
        _images(elf, layout, memory, contents),
        tuple(range(sections[name].address, sections[name].end) for name in _UNWINDER if name in sections),
        sections,
        values.defined(),
        values.external,
        _exports(sections),
    )


def _check_percpu(elf: ModuleElf, layout: Layout, percpu: int, allowed: range) -> None:
    section = elf.sections[layout.percpu]
    if not section.size:
        return
    if percpu < allowed.start or percpu + section.size > allowed.stop or percpu % (section.alignment or 1):
        raise ModuleRefused(f"the module's per-CPU variables at {percpu:#x} are not where modules have them")


def _images(
    elf: ModuleElf, layout: Layout, memory: Mapping[MemoryType, ModuleMemory], contents: Mapping[int, bytes]
) -> dict[MemoryType, bytes]:
    images = {kind: bytearray(memory[kind].size) for kind in (*CODE, *READ_ONLY) if kind in memory}
    for index, data in sort_tables(elf, contents).items():
        kind, offset = layout.offsets[index]
        if kind in images:
            images[kind][offset : offset + len(data)] = data
    return {kind: bytes(image) for kind, image in images.items()}


def _exports(sections: Mapping[str, Placed]) -> Exports:
    strings = sections.get("__ksymtab_strings")
    found: list[dict[str, int]] = []
    for name in ("__ksymtab", "__ksymtab_gpl"):
        table = sections.get(name)
        if table is None:
            found.append({})
        elif strings is None:
            raise ModuleRefused(f"{name} has no names")
        else:
            found.append(read_exports(table.data, table.address, strings.data, strings.address))
    flags = sections.get("__kflagstab")
    return Exports.of_tables(found[0], found[1], None if flags is None else flags.data)
