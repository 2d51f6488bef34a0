# SPDX-License-Identifier: GPL-2.0-or-later
"""The bus: functions by device number, and configuration mechanism 1 (PCI local bus specification 3.0, 3.2.2.3).

One bus, single-function devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.formats.board import PCI_ADDRESS_PORT, PCI_DATA_PORT, PCI_MEMORY
from veil.host.devices._state import checked_int

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus, MmioBus
    from veil.host.devices.pci.function import PciFunction

__all__ = ["PciBus"]

_ENABLE = 1 << 31
_SLOTS = 32


class PciBus:
    """CF8h and CFCh, and the functions by device number. The bridge decodes `memory`: (first, last + 1)."""

    def __init__(self, io: IoBus, mmio: MmioBus, memory: tuple[int, int] = PCI_MEMORY) -> None:
        self.memory = memory
        self._io, self._mmio = io, mmio
        self._address = 0
        self._functions: dict[int, PciFunction] = {}
        io.add_wide(PCI_ADDRESS_PORT, self._read_address, self._write_address)
        for lane in range(4):
            io.add_wide(PCI_DATA_PORT + lane, self._reader(lane), self._writer(lane))

    def add(self, device: int, function: PciFunction) -> None:
        """Plug a function in."""
        if not 0 <= device < _SLOTS or device in self._functions:
            raise ValueError(f"no free PCI slot {device}")
        self._functions[device] = function
        function.connect(self._io, self._mmio, self.memory)

    def function(self, bus: int, device: int, function: int) -> PciFunction | None:
        """The one that answers to these numbers."""
        return None if bus or function else self._functions.get(device)

    def _read_address(self, size: int) -> int:
        # Only accesses of 32 bits reach the register; others would be for ISA devices at these ports.
        return self._address if size == 4 else (1 << 8 * size) - 1

    def _write_address(self, size: int, value: int) -> None:
        if size == 4:
            self._address = value & 0x80FFFFFC

    def _target(self, lane: int, size: int) -> tuple[PciFunction, int] | None:
        address = self._address
        if not address & _ENABLE or lane + size > 4:
            return None
        function = self.function(address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7)
        return None if function is None else (function, (address & 0xFC) + lane)

    def _reader(self, lane: int) -> Callable[[int], int]:
        def read(size: int) -> int:
            target = self._target(lane, size)
            return (1 << 8 * size) - 1 if target is None else target[0].config_read(target[1], size)

        return read

    def _writer(self, lane: int) -> Callable[[int, int], None]:
        def write(size: int, value: int) -> None:
            target = self._target(lane, size)
            if target is not None:
                target[0].config_write(target[1], size, value)

        return write

    def dump(self) -> dict[str, Any]:
        return {
            "address": self._address,
            "functions": [[slot, function.config_state()] for slot, function in sorted(self._functions.items())],
        }

    def load(self, state: dict[str, Any]) -> None:
        functions = {checked_int(slot): bytes(config) for slot, config in state["functions"]}
        if functions.keys() != self._functions.keys():
            raise ValueError("other PCI devices than this host has")
        self._address = checked_int(state["address"])
        for slot, config in functions.items():
            self._functions[slot].load_config(config)
