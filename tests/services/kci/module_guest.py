# SPDX-License-Identifier: GPL-2.0-or-later
"""A locked-down model of a machine with small modules: one has a jump label, and uses what the other one exports."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.services.kci.model_machine import ModelMachine
from tests.services.kci.modules.made_module import KERNEL, MEMORY, MODULE_ADDRESS, PERCPU, A, MadeModule, W, X
from tests.services.kci.small_kernel import BASE, DATA, NOP5, PHYSICAL, TEXT_SIZE, SmallKernel, jump
from veil.formats.kci import KernelCall, MemoryType, ModuleMemory, ModulePrepared
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.kci import KernelImage, Segment
from veil.services.kci.modules import AdmittedFile, ExportedSymbols, Exports, ModuleSpace, prepare
from veil.services.kci.service import KciService

__all__ = ["EXPORTER", "JUMP", "LABELLED", "ModuleGuest"]

_SPACE = ModuleSpace(range(MODULE_ADDRESS, MODULE_ADDRESS + (1 << 30)), range(PERCPU, PERCPU + 4096))
_TABLE = "__jump_table"
_CODE = NOP5 + b"\xc3" + bytes(2) + b"\xc3"
_NAMES = b"exported\0"
#: Its jump label is the first instruction of its text, a NOP; `JUMP` is the other content.
LABELLED = (
    MadeModule()
    .with_section(".text", data=_CODE.ljust(16, b"\0"), flags=A | X, alignment=16, relocations=())
    .with_section(
        _TABLE,
        data=bytes(16),
        flags=A | W,
        relocations=((0, 2, "function", 0), (4, 2, "function", 8), (8, 24, "table", 0)),
    )
    .with_section(".data", data=bytes(8), flags=A | W, relocations=((0, 1, "exported", 0),))
    .with_symbols(("exported", 0, 0, 0x10))
)
JUMP = jump(0, 8)
EXPORTER = (
    MadeModule()
    .with_section(".modinfo", data=b"name=exporter\0license=GPL\0vermagic=6.12 SMP\0")
    .with_section("__ksymtab_strings", data=_NAMES)
    .with_section("__ksymtab", data=bytes(12), alignment=4, relocations=((0, 2, "function", 0), (4, 2, "names", 0)))
    .with_symbols(("names", "__ksymtab_strings", 0, 0))
)


class ModuleGuest(ModelMachine):
    """Its policy lists both modules."""

    def __init__(self, **settings: Any) -> None:
        kernel = SmallKernel()
        kernel.symbols |= {
            "__start_rodata": BASE + TEXT_SIZE, "__end_rodata": BASE + 0x4000, "__init_begin": BASE + 0x4000,
            "__init_end": DATA, "_sdata": DATA,
        }  # fmt: skip
        data = kernel.image().segments[0].data
        whole = data.ljust(-(-len(data) // PAGE_SIZE) * PAGE_SIZE, b"\0")
        hashes = tuple(hashlib.sha256(module.build()).digest().hex() for module in (LABELLED, EXPORTER))
        super().__init__(KernelImage([Segment(BASE, PHYSICAL, whole)]), hashes=hashes, keys="none", **settings)
        self._know_exports()
        self.ask(KernelCall.LOCK_DOWN)

    def _know_exports(self) -> None:
        measured: Any = self.service._measured
        measured.exported = lambda: ExportedSymbols(KERNEL)
        measured.module_space = _SPACE

    def from_snapshot(self) -> None:
        """The service goes on as it does in a machine of a snapshot that was made now."""
        settings, state, context = self.service._settings.measured(), self.service.save(), self.service.context
        self.service = KciService()
        self.service.context = context
        self.service.restore(settings, state)
        self._know_exports()

    def memory(self, made: MadeModule, place: int = 0) -> tuple[ModulePrepared, dict[int, bytes]]:
        """Where a module's memory is, each `place` apart from the others, and what is in it."""
        kinds = {*MEMORY, MemoryType.RO_AFTER_INIT} if made is LABELLED else set(MEMORY)
        where = {
            kind: ModuleMemory(MODULE_ADDRESS + 0x10000 * kind + (place << 24), PAGE_SIZE) for kind in sorted(kinds)
        }
        admitted = AdmittedFile(made.build(), bytes(32), None)
        exported = {"exported": MODULE_ADDRESS}
        linked = ExportedSymbols(Exports({**KERNEL.anyone, **exported}, KERNEL.gpl_only))
        prepared = prepare(admitted, where, PERCPU, linked, _SPACE)
        content = {int(kind): prepared.images.get(kind, b"").ljust(PAGE_SIZE, b"\0") for kind in where}
        return ModulePrepared(PERCPU, where), content

    def load(self, made: MadeModule, place: int = 0) -> tuple[int, dict[MemoryType, int]]:
        """Its number, and the page of each type of its memory. Raises Refused."""
        told, content = self.memory(made, place)
        self.send_file(made.build(), 0x4000_0000)
        number, pages = self.say_prepared(told, content, 0x5000_0000 + (place << 28))
        return number, dict(zip(sorted(told.memory), pages, strict=True))
