# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the symbols of a loaded module are, by its file and where the kernel says that its sections are.

The kernel's own list of all symbols takes it seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from veil.cvm import ConfidentialVM
from veil.services.kci.modules.elf import ModuleElf, SectionFlag

__all__ = ["ModuleSymbols"]

#: st_info: STT_SECTION and STT_FILE name no place of their own
_TYPE, _NAMELESS = 0xF, (3, 4)


class ModuleSymbols:
    """Symbols of a module that is loaded."""

    def __init__(self, vm: ConfidentialVM, file: bytes) -> None:
        self._elf = ModuleElf(file)
        place = f"/sys/module/{self._elf.name}/sections"
        told = vm.run(["sh", "-c", f"cd {place} && grep -r '' ."]).stdout.decode()
        self._sections = {name: int(at, 16) for name, at in re.findall(r"^\./(\S+):0x(\w+)$", told, re.MULTILINE)}

    def address(self, name: str) -> int:
        """Of the first symbol of this name."""
        return next(self._address(at) for at in self._placed() if self._elf.symbol_name(at) == name)

    def functions(self) -> list[int]:
        """What the kernel lists as code that stays."""
        return [self._address(at) for at in self._placed() if self._is_code(self._section(at))]

    def _placed(self) -> Iterator[int]:
        """Symbols in sections that are in memory."""
        for at in range(len(self._elf.symbols)):
            index = int(self._elf.symbols["section"][at])
            kind = int(self._elf.symbols["info"][at]) & _TYPE
            if 0 < index < len(self._elf.sections) and kind not in _NAMELESS and self._section(at) in self._sections:
                yield at

    def _section(self, symbol: int) -> str:
        return self._elf.sections[int(self._elf.symbols["section"][symbol])].name

    def _is_code(self, section: str) -> bool:
        (found,) = (item for item in self._elf.sections if item.name == section)
        return bool(found.flags & SectionFlag.EXECINSTR) and not section.startswith(".init")

    def _address(self, symbol: int) -> int:
        return self._sections[self._section(symbol)] + int(self._elf.symbols["value"][symbol])
