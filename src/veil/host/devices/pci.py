# SPDX-License-Identifier: GPL-2.0-or-later
"""A PCI bus with configuration mechanism 1 (PCI local bus specification 3.0, 3.2.2.3.2): bus 0, one host bridge.

BARs are assigned here, as firmware would do; the guest keeps or moves them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Bar", "PciBus", "PciFunction"]

_COMMAND, _STATUS, _BARS, _CAPABILITIES = 0x04, 0x06, 0x10, 0x34
_COMMAND_IO, _COMMAND_MEMORY = 1, 2
_STATUS_CAPABILITIES = 0x10


class BarHandler(Protocol):
    """What is behind a BAR; offsets are relative to its start."""

    def bar_read(self, bar: int, offset: int, size: int) -> int: ...

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None: ...


@dataclass(slots=True)
class Bar:
    """A base address register: its size in bytes, a power of two."""

    size: int
    io: bool
    address: int


class PciFunction:
    """A type 0 configuration space with its BARs and capabilities."""

    def __init__(
        self, *, vendor: int, device: int, class_code: int, subsystem: tuple[int, int] = (0, 0), revision: int = 0
    ) -> None:
        self.config = bytearray(256)
        self._writable = bytearray(256)
        struct.pack_into("<HH", self.config, 0, vendor, device)
        struct.pack_into("<I", self.config, 8, class_code << 8 | revision)
        struct.pack_into("<HH", self.config, 0x2C, *subsystem)
        self._writable[_COMMAND : _COMMAND + 2] = b"\x07\x04"
        self._writable[0x3C] = 0xFF
        self.bars: dict[int, Bar] = {}
        self._last_capability = _CAPABILITIES
        self._free = 0x40

    def add_bar(self, index: int, size: int, address: int, *, io: bool) -> None:
        """Declare and place a BAR."""
        self.bars[index] = Bar(size, io, address)
        self._put_bar(index)

    def add_capability(self, body: bytes, writable: bytes = b"") -> int:
        """Append a capability (its ID first, the next pointer is ours); returns its offset."""
        offset = self._free
        self._free = offset + len(body) + 3 & ~3
        self.config[offset : offset + len(body)] = body
        self.config[offset + 1] = 0
        self.config[self._last_capability if self._last_capability == _CAPABILITIES else self._last_capability + 1] = (
            offset
        )
        self._last_capability = offset
        self._writable[offset : offset + len(writable)] = writable
        self.config[_STATUS] |= _STATUS_CAPABILITIES
        return offset

    def decodes(self, bar: Bar) -> bool:
        """Is the BAR's space enabled in the command register?"""
        return bool(self.config[_COMMAND] & (_COMMAND_IO if bar.io else _COMMAND_MEMORY))

    def read_config(self, offset: int, size: int) -> int:
        """A configuration read."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A configuration write; read-only bits stay."""
        if _BARS <= offset < _BARS + 24 and size == 4 and offset % 4 == 0:
            self._write_bar((offset - _BARS) // 4, value)
            return
        for index, byte in enumerate(value.to_bytes(8, "little")[:size]):
            if offset + index < 256:
                mask = self._writable[offset + index]
                self.config[offset + index] = self.config[offset + index] & ~mask | byte & mask

    def _write_bar(self, index: int, value: int) -> None:
        bar = self.bars.get(index)
        if bar is not None:
            bar.address = value & ~(bar.size - 1) & (0xFFFFFFFC if bar.io else 0xFFFFFFF0)
            self._put_bar(index)

    def _put_bar(self, index: int) -> None:
        bar = self.bars[index]
        struct.pack_into("<I", self.config, _BARS + 4 * index, bar.address | (1 if bar.io else 0))

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Overridden by devices."""
        return 0

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Overridden by devices."""

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {"config": bytes(self.config), "bars": [[index, bar.address] for index, bar in self.bars.items()]}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self.config[:] = state["config"]
        for index, address in state["bars"]:
            self.bars[index].address = address


class PciBus:
    """Ports CF8h to CFFh, and the routing of port and memory accesses to BARs."""

    PORTS = tuple(range(0xCF8, 0xD00))

    def __init__(self) -> None:
        self._address = 0
        self._functions: dict[int, PciFunction] = {}
        # An Intel 440FX, the host bridge that every kernel knows.
        self.add(0, PciFunction(vendor=0x8086, device=0x1237, class_code=0x060000, revision=2))

    def add(self, device: int, function: PciFunction) -> None:
        """Put a function 0 at a device number."""
        self._functions[device] = function

    def _selected(self) -> PciFunction | None:
        address = self._address
        if not address >> 31 or address >> 16 & 0xFF or address >> 8 & 7:
            return None
        return self._functions.get(address >> 11 & 31)

    def read(self, port: int, size: int) -> int:
        """IN."""
        if port < 0xCFC:
            return self._address >> 8 * (port - 0xCF8) & (1 << 8 * size) - 1
        function = self._selected()
        if function is None:
            return (1 << 8 * size) - 1
        return function.read_config(self._address & 0xFC | port & 3, size)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        if port < 0xCFC:
            if port == 0xCF8 and size == 4:
                self._address = value
            return
        function = self._selected()
        if function is not None:
            function.write_config(self._address & 0xFC | port & 3, size, value)

    def find(self, address: int, *, io: bool) -> tuple[PciFunction, int, int] | None:
        """The function, BAR and offset behind an address."""
        for function in self._functions.values():
            for index, bar in function.bars.items():
                if bar.io == io and bar.address <= address < bar.address + bar.size and function.decodes(bar):
                    return function, index, address - bar.address
        return None

    def state(self) -> dict[str, Any]:
        """For a snapshot; the functions' own state is theirs."""
        return {"address": self._address}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self._address = state["address"]
