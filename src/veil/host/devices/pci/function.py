# SPDX-License-Identifier: GPL-2.0-or-later
"""A PCI function's configuration space (PCI local bus specification 3.0, chapter 6).

BARs are assigned here, as firmware would do; a guest may move them within the ranges that the bridge decodes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veil.formats.board import PCI_IO, PCI_MEMORY
from veil.host.devices.bus import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus, MmioBus

__all__ = [
    "COMMAND",
    "COMMAND_IO",
    "COMMAND_MASTER",
    "COMMAND_MEMORY",
    "COMMAND_NO_INTX",
    "CONFIG_SIZE",
    "INTERRUPT_LINE",
    "INTERRUPT_PIN",
    "QEMU_SUBSYSTEM",
    "PciFunction",
]

#: bytes
CONFIG_SIZE = 256
#: vendor and device of QEMU's functions, as guests know them
QEMU_SUBSYSTEM = (0x1AF4, 0x1100)

COMMAND, INTERRUPT_LINE, INTERRUPT_PIN = 0x04, 0x3C, 0x3D
_STATUS, _CAPABILITIES = 0x06, 0x34
_BARS = 0x10
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_NO_INTX = 1, 2, 4, 1 << 10
_COMMAND_WRITABLE = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX
_STATUS_CAPABILITIES = 1 << 4
_BAR_IO = 1


@dataclass(slots=True)
class _Bar:
    offset: int
    size: int
    io: bool
    window: Window
    mapped: bool = False


class PciFunction:
    """A type 0 configuration space; subclasses add BARs and capabilities, and hear of writes by `config_written`."""

    def __init__(
        self, *, vendor: int, device: int, class_code: int, revision: int = 0, subsystem: tuple[int, int] = (0, 0)
    ) -> None:
        self.config = bytearray(CONFIG_SIZE)
        self.writable = bytearray(CONFIG_SIZE)
        struct.pack_into("<HH", self.config, 0, vendor, device)
        struct.pack_into("<I", self.config, 8, class_code << 8 | revision)
        struct.pack_into("<HH", self.config, 0x2C, *subsystem)
        struct.pack_into("<H", self.writable, COMMAND, _COMMAND_WRITABLE)
        self.writable[INTERRUPT_LINE] = 0xFF
        self._bars: list[_Bar] = []
        self._last_capability = _CAPABILITIES
        self._free = 0x40
        self._io: IoBus | None = None
        self._mmio: MmioBus | None = None
        self._decoded = PCI_MEMORY

    def add_bar(
        self,
        index: int,
        size: int,
        address: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        *,
        io: bool,
    ) -> None:
        """A 32-bit BAR of a power of two of bytes, placed at `address` and decoded from the start."""
        offset = _BARS + 4 * index
        struct.pack_into("<I", self.config, offset, address | (_BAR_IO if io else 0))
        struct.pack_into("<I", self.writable, offset, (0xFFFF if io else 0xFFFFFFFF) & -size)
        self.config[COMMAND] |= COMMAND_IO if io else COMMAND_MEMORY
        self._bars.append(_Bar(offset, size, io, Window(address, size, read, write)))

    def add_capability(self, body: bytes, writable: bytes = b"") -> int:
        """Append a capability (its ID, a place for the pointer, the rest); returns its offset."""
        offset = self._free
        self._free += len(body) + 3 & ~3
        self.config[offset : offset + len(body)] = body
        self.config[offset + 1] = 0
        self.writable[offset : offset + len(writable)] = writable
        place = self._last_capability if self._last_capability == _CAPABILITIES else self._last_capability + 1
        self.config[place] = offset
        self.config[_STATUS] |= _STATUS_CAPABILITIES
        self._last_capability = offset
        return offset

    @property
    def command(self) -> int:
        """The command register."""
        return self.config[COMMAND] | self.config[COMMAND + 1] << 8

    def connect(self, io: IoBus, mmio: MmioBus, memory: tuple[int, int]) -> None:
        """Decode the BARs on these busses from now on; the bridge passes `memory`, (first, last + 1)."""
        self._io, self._mmio, self._decoded = io, mmio, memory
        self.decode()

    def decode(self) -> None:
        """Map each BAR where it now points, if decoding is on and the bridge passes the address."""
        assert self._io is not None
        assert self._mmio is not None
        for bar in self._bars:
            bus = self._io if bar.io else self._mmio
            if bar.mapped:
                bus.remove_window(bar.window)
                bar.mapped = False
            start = struct.unpack_from("<I", self.config, bar.offset)[0] & -bar.size
            low, high = PCI_IO if bar.io else self._decoded
            on = self.command & (COMMAND_IO if bar.io else COMMAND_MEMORY)
            # While a driver sizes a BAR it points anywhere; over other devices or memory it must not go.
            if on and low <= start and start + bar.size <= high:
                bar.window.start = start
                bus.add_window(bar.window)
                bar.mapped = True

    def config_read(self, offset: int, size: int) -> int:
        """Within one doubleword."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Within one doubleword."""
        for index in range(offset, offset + size):
            mask = self.writable[index]
            self.config[index] = self.config[index] & ~mask | value & 0xFF & mask
            value >>= 8
        if offset >> 2 == COMMAND >> 2 or _BARS <= offset < _BARS + 24:
            self.decode()
        self.config_written(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        """For subclasses."""

    def config_state(self) -> bytes:
        """For a snapshot."""
        return bytes(self.config)

    def load_config(self, config: bytes) -> None:
        """From a snapshot: only what a guest could have written is taken."""
        if len(config) != CONFIG_SIZE:
            raise ValueError(f"a configuration space of {len(config)} bytes")
        for index, mask in enumerate(self.writable):
            self.config[index] = self.config[index] & ~mask | config[index] & mask
        self.decode()
