# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules for a module's code: the kernel's own, from the module's tables, with the kernel around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from veil.formats.kci import MemoryType
from veil.services.kci.byte_rows import distinct
from veil.services.kci.errors import KciError, TableError
from veil.services.kci.explain_code import CodeRules, Configuration, Unexplained
from veil.services.kci.kernel_image import AddressRange
from veil.services.kci.modules.prepared import Prepared
from veil.services.kci.patch_tables import PatchTables, Section, parse_tables
from veil.services.kci.surroundings import ReadMemory, Surroundings, addressed, entries

__all__ = ["ModuleCode"]

#: What is explained: the code's bytes, the variables that it follows, the kernel's configuration.
_Input: TypeAlias = tuple[bytes, tuple[bytes, ...], Configuration]

_CODE = (MemoryType.TEXT, MemoryType.INIT_TEXT)


class ModuleCode:
    """What each piece of a prepared module's code may hold once the kernel has patched it.

    `near` is the kernel around with all modules that were verified before. Raises TableError for tables that no sound
    module has, a site outside of the module's own code first of all: the kernel would patch itself there.
    """

    def __init__(self, prepared: Prepared, near: Surroundings) -> None:
        self._images = {kind: (prepared.memory[kind].address, prepared.images[kind]) for kind in _CODE
                        if prepared.images.get(kind)}  # fmt: skip
        inside = [AddressRange(at, at + len(code), f"{prepared.name} {kind.name}")
                  for kind, (at, code) in self._images.items()]  # fmt: skip
        sections = {name: Section(piece.address, piece.data) for name, piece in prepared.sections.items()}
        tables = parse_tables(sections, inside)
        self.targets: list[int] = []
        """Functions to which pointers and static calls may lead: for `Surroundings.admit()`, once it is verified."""
        # In one piece, which takes one look for all of them: no address of a module's ends with so many zeros.
        contents = [bytes(4).join(piece.data for piece in prepared.sections.values())]
        for at, code in self._images.values():
            functions = _between(prepared.symbols, at, len(code))
            called = entries(code, at, functions, tables.endbr_seals, marked=near.marked)
            self.targets += distinct(np.concatenate([called, addressed(functions, contents)])).tolist()
        read = _reader(self._images)
        trampolines = [at for name, at in prepared.symbols.items() if name.startswith("__SCT__")]
        self._near, own = near, near.admit(targets=self.targets)
        self.rules: Mapping[MemoryType, CodeRules] = {
            kind: CodeRules(at, code, _tables(tables, kind), read, own, trampolines)
            for kind, (at, code) in self._images.items()
        }
        self._around = own
        self._sound: dict[MemoryType, _Input] = {}
        self._left: dict[MemoryType, tuple[Surroundings, Surroundings]] = {}
        """What was around when a piece left that had come, and what was around then."""

    def around(self, near: Surroundings) -> Surroundings:
        """The code around with this module's own."""
        if near is not self._near:
            if not near.equals(self._near):
                self._around = near.admit(targets=self.targets)
                self._sound.clear()
            self._near = near
        return self._around

    def without(self, kind: MemoryType, near: Surroundings) -> Surroundings:
        """The code around without a piece of this module's, which is no code any more."""
        left = self._left.get(kind)
        if left is None or left[0] is not near:
            after = near.retire(self.rules[kind].range)
            # As before it came: known by that when it comes again.
            left = self._left[kind] = near, self._near if after.equals(self._near) else after
        return left[1]

    def admit(self, near: Surroundings) -> None:
        """The same module at the same place again, with other code around, perhaps."""
        own = self.around(near)
        for rules in self.rules.values():
            rules.admit(own)

    def unexplained(
        self, kind: MemoryType, now: bytes, data: ReadMemory, configuration: Configuration
    ) -> tuple[Unexplained, int] | None:
        """None if the code as it is `now` is explained; otherwise its first byte that is not, and how many there are.

        What `explain` makes of the same bytes, variables, configuration and surroundings is always the same: so it is
        not asked again about the last ones that were sound. Memory is compared all the same, every byte of it.
        """
        rules = self.rules[kind]
        asked = _asked(rules, now, data, configuration) if rules.near is self._around else None
        if asked is not None and self._sound.get(kind) == asked:
            return None
        explanation = rules.explain(now, data, configuration)
        if not explanation.sound:
            return explanation.unexplained[0], explanation.unexplained_bytes
        if asked is not None:
            self._sound[kind] = asked
        return None


def _reader(images: Mapping[MemoryType, tuple[int, bytes]]) -> ReadMemory:
    # No method: rules that know who has them would be garbage of many megabytes until somebody looks for cycles.
    def read(address: int, length: int) -> bytes:
        for at, code in images.values():
            if at <= address and address + length <= at + len(code):
                return code[address - at : address - at + length]
        raise TableError(f"{address:#x}+{length:#x} is not in the module's code")

    return read


def _asked(rules: CodeRules, now: bytes, data: ReadMemory, configuration: Configuration) -> _Input | None:
    """All that an explanation depends on beside the rules; None if a variable cannot be read as a whole."""
    try:
        return now, tuple(data(address, 8) for address in rules.variables), configuration
    except KciError:
        return None


def _tables(tables: PatchTables, kind: MemoryType) -> PatchTables:
    # The kernel leaves the lock prefixes of init code alone (alternatives_smp_module_add() gets the text only).
    if kind is MemoryType.INIT_TEXT:
        return replace(tables, smp_locks=np.empty(0, np.uint64))
    return tables


def _between(symbols: Mapping[str, int], start: int, size: int) -> NDArray[np.uint64]:
    return np.array(sorted(at for at in symbols.values() if start <= at < start + size), np.uint64)
