# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows from a module's file, kept for when the same file comes again soon.

A file is known again by its SHA-256, as its signature knows it. Nothing is kept but what the file, the policy and the
places in memory say: what lies in memory is compared each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from veil.formats.kci import ModulePrepared
from veil.services.kci.measured_kernel import MeasuredKernel
from veil.services.kci.module_code import ModuleCode
from veil.services.kci.modules import AdmittedFile, ExportedSymbols, Exports, Prepared, prepare
from veil.services.kci.surroundings import Surroundings

__all__ = ["RecentModules"]

_MAX_KEPT = 4
_MAX_FILE = 256 << 10


@dataclass
class _Known:
    admitted: AdmittedFile
    told: ModulePrepared | None = None
    exporters: Mapping[str, Exports] | None = None
    derived: tuple[Prepared, ModuleCode] | None = None


class RecentModules:
    """Of small files, the last few: so it is bounded."""

    def __init__(self, measured: MeasuredKernel) -> None:
        self._measured = measured
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def admit(self, file: bytes, digest: bytes) -> AdmittedFile:
        """Who vouches for it? `digest` is its SHA-256. Raises ModuleRefused if nobody does."""
        known = self._known.get(digest)
        if known is None:
            admitted = self._measured.policy.admit(file)
            if len(file) > _MAX_FILE:
                return admitted
            known = self._known[digest] = _Known(admitted)
        self._known.move_to_end(digest)
        if len(self._known) > _MAX_KEPT:
            self._known.popitem(last=False)
        return known.admitted

    def derive(
        self, admitted: AdmittedFile, told: ModulePrepared, exported: ExportedSymbols, near: Surroundings
    ) -> tuple[Prepared, ModuleCode]:
        """What its memory must be, and the rules for its code, which may be those of a module that runs: with what is
        around now they are asked after `ModuleCode.admit()`. Raises ModuleRefused, TableError."""
        known = self._known.get(admitted.digest)
        now = told, exported.exporters()
        if known is not None and known.derived is not None and (known.told, known.exporters) == now:
            return known.derived
        prepared = prepare(admitted, told.memory, told.percpu, exported, self._measured.module_space)
        exported.check(prepared.name, prepared.exports)
        code = ModuleCode(prepared, near)
        if known is not None:
            (known.told, known.exporters), known.derived = now, (prepared, code)
        return prepared, code
