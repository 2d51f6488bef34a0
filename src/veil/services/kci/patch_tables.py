# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables by which Linux finds the places that it patches: of the kernel between symbols, of a module in sections.

Layouts: arch/x86/include/asm/alternative.h (struct alt_instr), include/linux/jump_label.h (struct jump_entry),
include/linux/static_call_types.h (struct static_call_site); the others are arrays of one number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.errors import TableError

if TYPE_CHECKING:
    from veil.services.kci.kernel_image import AddressRange, KernelImage

__all__ = ["PatchTables", "RuntimeConstant", "Section", "kernel_tables", "parse_tables"]

_ALTERNATIVE = np.dtype(
    [("site", "<i4"), ("replacement", "<i4"), ("feature", "<u2"), ("flags", "<u2"), ("length", "u1"), ("size", "u1")]
)
_JUMP = np.dtype([("code", "<i4"), ("target", "<i4"), ("key", "<i8")])
_STATIC_CALL = np.dtype([("site", "<i4"), ("key", "<i4")])
_OFFSET = np.dtype("<i4")
_ADDRESS = np.dtype("<u8")

#: STATIC_CALL_SITE_TAIL, STATIC_CALL_SITE_INIT
_SITE_FLAGS = 3

# The linker's symbols around each table of the kernel; a module has a section of the name on the left.
_SYMBOLS = {
    ".altinstructions": ("__alt_instructions", "__alt_instructions_end"),
    ".retpoline_sites": ("__retpoline_sites", "__retpoline_sites_end"),
    ".return_sites": ("__return_sites", "__return_sites_end"),
    ".ibt_endbr_seal": ("__ibt_endbr_seal", "__ibt_endbr_seal_end"),
    ".smp_locks": ("__smp_locks", "__smp_locks_end"),
    ".cfi_sites": ("__cfi_sites", "__cfi_sites_end"),
    ".parainstructions": ("__parainstructions", "__parainstructions_end"),
    "__mcount_loc": ("__start_mcount_loc", "__stop_mcount_loc"),
    "__jump_table": ("__start___jump_table", "__stop___jump_table"),
    ".static_call_sites": ("__start_static_call_sites", "__stop_static_call_sites"),
    ".static_call_tramp_key": ("__start_static_call_tramp_key", "__stop_static_call_tramp_key"),
}
_CONSTANT = "__start_runtime_"


class Section(NamedTuple):
    """A table's bytes, and where they lie."""

    address: int
    data: bytes


@dataclass(frozen=True)
class RuntimeConstant:
    """The places in text where Linux puts the value of a variable once it is known (asm/runtime-const.h)."""

    name: str
    kind: str
    """`ptr`: 8 bytes; `shift`: 1 byte."""
    address: int | None
    """Where the variable lies."""
    sites: NDArray[np.uint64]


@dataclass(frozen=True)
class PatchTables:
    """Addresses of patch sites, absolute, each table in its own order. What an image has not is empty."""

    alternatives: NDArray[Any]
    """Records `site`, `replacement`, `feature`, `flags`, `length` (of the site), `size` (of the replacement)."""
    retpolines: NDArray[np.uint64]
    returns: NDArray[np.uint64]
    endbr_seals: NDArray[np.uint64]
    smp_locks: NDArray[np.uint64]
    functions: NDArray[np.uint64]
    """Calls of __fentry__ (mcount_loc)."""
    jumps: NDArray[Any]
    """Records `site`, `target`, `key`."""
    static_calls: NDArray[Any]
    """Records `site`, `key`, `tail`."""
    constants: tuple[RuntimeConstant, ...] = ()


def kernel_tables(image: KernelImage) -> PatchTables:
    """The tables of the kernel itself. Raises ImageError, TableError."""
    sections = {}
    for name, (start, end) in _SYMBOLS.items():
        found = image.between(start, end)
        if found is not None:
            sections[name] = Section(*found)
    inside = [segment.range for segment in image.segments]
    tables = parse_tables(sections, inside)
    constants = []
    for symbol in image.symbols.named(prefix=_CONSTANT):
        kind, _, name = symbol.removeprefix(_CONSTANT).partition("_")
        found = image.between(symbol, symbol.replace("__start_", "__stop_", 1))
        if found is not None:
            sites = _relative(Section(*found), symbol)
            _check(sites, inside, symbol)
            constants.append(RuntimeConstant(name, kind, image.symbols.get(name), sites))
    return replace(tables, constants=tuple(sorted(constants, key=lambda constant: (constant.kind, constant.name))))


def parse_tables(sections: Mapping[str, Section], inside: Sequence[AddressRange]) -> PatchTables:
    """Tables from sections by name, which may come from a hostile module.

    Each site, and what it is replaced with, must lie `inside` of these addresses. Raises TableError.
    """
    for name in (".cfi_sites", ".parainstructions"):
        if name in sections and sections[name].data:
            raise TableError(f"patch sites of a kind that VeilS-KCI does not know: {name}")
    single = {
        name: _relative(sections[name], name) if name in sections else np.empty(0, np.uint64)
        for name in (".retpoline_sites", ".return_sites", ".ibt_endbr_seal")
    }
    functions = _array(sections.get("__mcount_loc"), _ADDRESS, "__mcount_loc")[0].astype(np.uint64)
    # Zero: padding up to the section's pages, and functions that the linker dropped.
    functions = functions[functions != 0]
    locks, _ = _array(sections.get(".smp_locks"), _OFFSET, ".smp_locks")
    smp_locks = _relative(sections[".smp_locks"], ".smp_locks")[locks != 0] if len(locks) else np.empty(0, np.uint64)
    tables = PatchTables(
        alternatives=_alternatives(sections.get(".altinstructions")),
        retpolines=single[".retpoline_sites"],
        returns=single[".return_sites"],
        endbr_seals=single[".ibt_endbr_seal"],
        smp_locks=smp_locks,
        functions=functions,
        jumps=_jumps(sections.get("__jump_table")),
        static_calls=_static_calls(sections.get(".static_call_sites")),
    )
    for name, sites in (
        (".altinstructions", tables.alternatives["site"]),
        (".retpoline_sites", tables.retpolines),
        (".return_sites", tables.returns),
        (".ibt_endbr_seal", tables.endbr_seals),
        (".smp_locks", tables.smp_locks),
        ("__mcount_loc", tables.functions),
        ("__jump_table", tables.jumps["site"]),
        (".static_call_sites", tables.static_calls["site"]),
    ):
        _check(sites, inside, name)
    alternatives = tables.alternatives
    _check(alternatives["site"], inside, ".altinstructions", alternatives["length"])
    filled = alternatives[alternatives["size"] > 0]
    _check(filled["replacement"], inside, ".altinstructions", filled["size"])
    return tables


def _array(section: Section | None, form: np.dtype[Any], name: str) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """A section's records, and the address of each."""
    if section is None:
        section = Section(0, b"")
    if len(section.data) % form.itemsize:
        raise TableError(f"{name} has {len(section.data)} bytes, which are no whole entries of {form.itemsize}")
    records = np.frombuffer(section.data, form)
    return records, np.uint64(section.address) + np.arange(len(records), dtype=np.uint64) * np.uint64(form.itemsize)


def _relative(section: Section, name: str) -> NDArray[np.uint64]:
    offsets, places = _array(section, _OFFSET, name)
    return places + offsets.astype(np.int64).astype(np.uint64)


def _field(records: NDArray[Any], places: NDArray[np.uint64], name: str) -> NDArray[np.uint64]:
    """A field that holds the distance from itself to what it means."""
    fields = records.dtype.fields
    assert fields is not None
    return places + np.uint64(fields[name][1]) + records[name].astype(np.int64).astype(np.uint64)


def _alternatives(section: Section | None) -> NDArray[Any]:
    records, places = _array(section, _ALTERNATIVE, ".altinstructions")
    form = [("site", "u8"), ("replacement", "u8"), ("feature", "u2"), ("flags", "u2"), ("length", "u1"), ("size", "u1")]
    found = np.empty(len(records), form)
    for name in ("feature", "flags", "length", "size"):
        found[name] = records[name]
    found["site"] = _field(records, places, "site")
    found["replacement"] = _field(records, places, "replacement")
    longer = np.flatnonzero(found["size"] > found["length"])
    # Padding of a site that has several alternatives stands in one of their entries only: the kernel takes the longest.
    for at in longer.tolist():
        same = found["length"][found["site"] == found["site"][at]]
        if same.max() < found["size"][at]:
            raise TableError(f".altinstructions replaces {found['site'][at]:#x} with more bytes than it has")
    return found


def _jumps(section: Section | None) -> NDArray[Any]:
    records, places = _array(section, _JUMP, "__jump_table")
    found = np.empty(len(records), [("site", "u8"), ("target", "u8"), ("key", "u8")])
    found["site"] = _field(records, places, "code")
    found["target"] = _field(records, places, "target")
    found["key"] = _field(records, places, "key") & ~np.uint64(3)
    return found


def _static_calls(section: Section | None) -> NDArray[Any]:
    records, places = _array(section, _STATIC_CALL, ".static_call_sites")
    found = np.empty(len(records), [("site", "u8"), ("key", "u8"), ("tail", "?")])
    found["site"] = _field(records, places, "site")
    key = _field(records, places, "key")
    found["key"] = key & ~np.uint64(_SITE_FLAGS)
    found["tail"] = (key & np.uint64(1)) != 0
    return found


def _check(sites: NDArray[np.uint64], inside: Sequence[AddressRange], name: str, sizes: Any = 1) -> None:
    sound = np.zeros(len(sites), bool)
    for piece in inside:
        # Compared without sums of addresses, which could wrap.
        place = sites - np.uint64(piece.start)
        sizes64 = np.asarray(sizes, np.uint64)
        size = np.uint64(piece.size)
        sound |= (sites >= np.uint64(piece.start)) & (place < size) & (sizes64 <= size - np.minimum(place, size))
    wrong = np.flatnonzero(~sound)
    if len(wrong):
        raise TableError(f"{name} has a site outside of the code that it belongs to: {sites[wrong[0]]:#x}")
