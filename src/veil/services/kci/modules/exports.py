# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols that the kernel and modules export (EXPORT_SYMBOL; Linux, kernel/module/main.c: find_symbol)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from veil.services.kci.modules.errors import ModuleRefused

__all__ = ["ExportedSymbols", "Exports", "read_exports"]

#: struct kernel_symbol with relative references: offsets of value, name and namespace, each from its own field
_ENTRY = np.dtype([("value", "<i4"), ("name", "<i4"), ("namespace", "<i4")])
_MAX_NAME = 512
#: enum ksym_flags
_GPL_ONLY = 1 << 0


def read_exports(table: bytes | memoryview, address: int, strings: bytes, strings_address: int) -> dict[str, int]:
    """Addresses by name of a `__ksymtab` or `__ksymtab_gpl` that lies at `address`; its names are in `strings`, which
    lie at `strings_address`. Raises ModuleRefused."""
    if len(table) % _ENTRY.itemsize:
        raise ModuleRefused(f"a table of exported symbols has {len(table)} bytes")
    entries = np.frombuffer(table, _ENTRY)
    at = np.uint64(address) + np.arange(len(entries), dtype=np.uint64) * np.uint64(_ENTRY.itemsize)
    values = at + entries["value"].astype(np.uint64)
    names = at + np.uint64(4) + entries["name"].astype(np.uint64) - np.uint64(strings_address)
    if np.any(names >= len(strings)):
        raise ModuleRefused("the name of an exported symbol lies outside the names")
    found: dict[str, int] = {}
    for value, start in zip(values.tolist(), names.tolist(), strict=True):
        end = strings.find(b"\0", start, start + _MAX_NAME)
        if end <= start:
            raise ModuleRefused("the name of an exported symbol does not end")
        found[strings[start:end].decode("ascii", "replace")] = value
    return found


@dataclass(frozen=True)
class Exports:
    """What one of them exports: addresses by name, of per-CPU variables offsets."""

    anyone: Mapping[str, int] = field(default_factory=dict)
    gpl_only: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_tables(
        cls, plain: Mapping[str, int], gpl: Mapping[str, int], flags: bytes | memoryview | None = None
    ) -> Exports:
        """From what `__ksymtab` and `__ksymtab_gpl` name, and from `__kflagstab`: kernels since 7.1 have this in place
        of the second table, with a byte for each entry of the first. Raises ModuleRefused."""
        if flags is None:
            return cls(plain, gpl)
        if len(flags) != len(plain):
            raise ModuleRefused(f"{len(plain)} symbols are exported, with flags for {len(flags)}")
        marked = list(zip(plain.items(), flags, strict=True))
        return cls(
            dict(item for item, flag in marked if not flag & _GPL_ONLY),
            {**gpl, **dict(item for item, flag in marked if flag & _GPL_ONLY)},
        )


class ExportedSymbols:
    """All that a module can be linked to: the kernel's exports, and those of modules that were accepted."""

    def __init__(self, kernel: Exports) -> None:
        self._names = {""}
        self._exporters: dict[str, Exports] = {"": kernel}
        """Those that export something: of most modules nothing is linked to."""

    def resolve(self, name: str, *, gpl: bool) -> int | None:
        """The value of a symbol for a module whose licence is compatible with the GPL, or is not."""
        for exports in self._exporters.values():
            found = exports.anyone.get(name)
            if found is None and gpl:
                found = exports.gpl_only.get(name)
            if found is not None:
                return found
        return None

    def check(self, module: str, exports: Exports) -> None:
        """Of a module that is to run. Raises ModuleRefused if something of it is exported already
        (verify_exported_symbols)."""
        self._check_name(module)
        new = exports.anyone.keys() | exports.gpl_only.keys()
        for other in self._exporters.values():
            for names in (other.anyone.keys(), other.gpl_only.keys()):
                if not names.isdisjoint(new):
                    raise ModuleRefused(f"{module} exports {min(names & new)}, which is exported already")

    def add(self, module: str, exports: Exports) -> None:
        """Of a module that runs now, for which `check` was asked with these exporters. Raises ModuleRefused if there is
        one of that name."""
        self._check_name(module)
        self._names.add(module)
        if exports.anyone or exports.gpl_only:
            self._exporters[module] = exports

    def _check_name(self, module: str) -> None:
        if module in self._names:
            raise ModuleRefused(f"a module {module} runs already")

    def remove(self, module: str) -> None:
        """Of a module that is gone."""
        self._names.discard(module)
        self._exporters.pop(module, None)

    def exporters(self) -> dict[str, Exports]:
        """Who exports what now; equal as long as every symbol resolves as before."""
        return dict(self._exporters)
