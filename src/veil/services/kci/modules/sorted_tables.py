# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables in read-only data that the loader sorts before anybody uses them: faults' handlers, ftrace's sites (Linux,
lib/extable.c: sort_extable; kernel/trace/ftrace.c: ftrace_process_locs)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from veil.services.kci.modules.elf import ModuleElf
from veil.services.kci.modules.errors import ModuleRefused

__all__ = ["sort_tables"]

#: struct exception_table_entry: offsets of instruction and handler, each from its own field; type
_EXTABLE = np.dtype([("instruction", "<i4"), ("fixup", "<i4"), ("data", "<i4")])


def sort_tables(elf: ModuleElf, contents: Mapping[int, bytes]) -> dict[int, bytes]:
    """The same contents of sections by number, with these tables sorted. Raises ModuleRefused."""
    made = dict(contents)
    for name, width, sort in (
        ("__ex_table", _EXTABLE.itemsize, _sort_extable), ("__mcount_loc", 8, _sort_addresses),
    ):  # fmt: skip
        section = elf.section(name)
        index = section.index if section is not None else 0
        if index in made:
            if len(made[index]) % width:
                raise ModuleRefused(f"{name} has {len(made[index])} bytes")
            made[index] = sort(made[index])
    return made


def _sort_addresses(table: bytes) -> bytes:
    return np.sort(np.frombuffer(table, "<u8")).tobytes()


def _sort_extable(table: bytes) -> bytes:
    entries = np.frombuffer(table, _EXTABLE)
    places = np.arange(len(entries), dtype=np.int64) * _EXTABLE.itemsize
    order = np.argsort(entries["instruction"] + places, kind="stable")
    moved = entries[order].copy()
    for name in ("instruction", "fixup"):
        moved[name] = (entries[name] + places)[order] - places
    return moved.tobytes()
