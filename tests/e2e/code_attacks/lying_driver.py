# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code that asks VeilS-KCI in the driver's place, and says what the test wants."""

from __future__ import annotations

import struct

from tests.e2e.code_attacks.guests import CodeGuest
from veil.formats.kci import KCI_NUMBER, FilePart, KernelCall, MemoryType, ModuleMemory, ModulePrepared
from veil.formats.status import Status
from veil.services.kci.modules.elf import ModuleElf
from veil.services.kci.modules.layout import lay_out

__all__ = ["WHERE", "LyingDriver", "memory_of"]

PAGE = 4096
#: Where it says that modules lie.
WHERE = 0xFFFFFFFFC0800000


def memory_of(body: bytes) -> dict[MemoryType, ModuleMemory]:
    """Pieces of memory in which a module would fit."""
    sizes = lay_out(ModuleElf(body)).sizes
    return {
        kind: ModuleMemory(WHERE + 0x100000 * kind, -(-sizes[kind] // PAGE) * PAGE)
        for kind in MemoryType
        if sizes.get(kind)
    }


class LyingDriver:
    """It has some pages of the kernel's, on which nothing else is."""

    def __init__(self, guest: CodeGuest) -> None:
        self._guest = guest
        self._block = guest.block(0)
        self._sent = 0
        self.pages = [guest.number("page") for _ in range(8)]

    def ask(self, call: KernelCall, body: bytes, pages: list[int], how: str = "ask") -> Status:
        """What VeilS-KCI answers, on VCPU 0. `how`: "together" is with all other VCPUs as accomplices."""
        request = (struct.pack(f"<{len(pages)}Q", *pages) + body).hex() or "-"
        return Status(self._guest.number(how, self._block, KCI_NUMBER, call, str(len(pages)), request))

    def file(self, file: bytes) -> None:
        """Hand a file over, from pages of the kernel's."""
        pages = self.pages[: -(-len(file) // PAGE)]
        for number, page in enumerate(pages):
            content = file[number * PAGE : (number + 1) * PAGE]
            self._guest.vm.machine.view(vmpl=3).write(page, content.ljust(PAGE, b"\0"))
        self._sent = len(file)
        assert self.ask(KernelCall.MODULE_FILE, FilePart(len(file), 0).pack(), pages) == Status.OK

    def prepared(self, body: bytes, pages: list[int]) -> Status:
        """Say that the module is where it would fit."""
        memory = memory_of(body)
        count = sum(place.size for place in memory.values()) // PAGE
        nothing_left = FilePart(self._sent, self._sent).pack()
        return self.ask(KernelCall.MODULE_PREPARED, nothing_left + ModulePrepared(0, memory).pack(), pages[:count])
