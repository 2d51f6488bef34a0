# SPDX-License-Identifier: GPL-2.0-or-later
"""fw_cfg: items by number and files by name, which the host offers and the guest reads (QEMU, docs/specs/fw_cfg.rst).

A guest chooses an item at port 510h and reads it byte by byte at 511h, or gives the device a request in shared memory
by ports 514h and 518h. Nothing can be written.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from veil.host.devices._state import load_integers, save_integers
from veil.snp.errors import SnpError

if TYPE_CHECKING:
    from veil.host.devices.bus import IoBus
    from veil.host.devices.firmware.contents import BoardContents
    from veil.host.devices.virtio.virtqueue import DmaMemory

__all__ = ["FirmwareConfig"]

_SELECTOR_PORT, _DATA_PORT, _DMA_HIGH_PORT, _DMA_LOW_PORT = 0x510, 0x511, 0x514, 0x518

_SIGNATURE, _ID, _FILE_DIRECTORY, _FIRST_FILE = 0x00, 0x01, 0x19, 0x20
#: the interface by ports, and that by DMA
_FEATURES = struct.pack("<I", 1 << 0 | 1 << 1)
#: What the address register reads as (big-endian): "there is DMA".
_DMA_SIGNATURE = b"QEMU CFG"
_NUMBER = 0x3FFF
_NAME_SIZE = 56

#: control, length, address
_REQUEST = struct.Struct(">IIQ")
_ERROR, _READ, _SKIP, _SELECT, _WRITE = 1, 2, 4, 8, 16
_CHUNK = 64 * 1024


class FirmwareConfig:
    """The device. `memory` is guest memory as a device reaches it."""

    _SAVED = ("_selected", "_offset", "_address")

    def __init__(self, memory: DmaMemory, contents: BoardContents) -> None:
        self._memory = memory
        self._items = {_SIGNATURE: b"QEMU", _ID: _FEATURES, **contents.items}
        entries = []
        for number, (name, content) in enumerate(sorted(contents.files.items()), _FIRST_FILE):
            if len(name) >= _NAME_SIZE:
                raise ValueError(f"a name of at most {_NAME_SIZE - 1} characters, not {name!r}")
            entries.append(struct.pack(f">IHH{_NAME_SIZE}s", len(content), number, 0, name.encode()))
            self._items[number] = content
        self._items[_FILE_DIRECTORY] = struct.pack(">I", len(entries)) + b"".join(entries)
        self._selected = 0
        self._offset = 0
        self._address = 0

    def attach(self, bus: IoBus) -> None:
        """Put the ports on a bus."""
        bus.add_wide(_SELECTOR_PORT, lambda size: 0, lambda size, value: self._select(value))
        bus.add_register(_DATA_PORT, self._read_byte)
        bus.add_wide(_DMA_HIGH_PORT, lambda size: self._signature(0, size), self._write_high)
        bus.add_wide(_DMA_LOW_PORT, lambda size: self._signature(4, size), self._write_low)

    def _select(self, number: int) -> None:
        self._selected, self._offset = number & _NUMBER, 0

    def _take(self, length: int) -> bytes:
        """The next bytes of the item; behind its end are zeros."""
        item = self._items.get(self._selected, b"")
        data = item[self._offset : self._offset + length]
        self._offset += length
        return data.ljust(length, b"\0")

    def _read_byte(self) -> int:
        return self._take(1)[0]

    # The request's address is written big-endian, its upper half first; the lower half starts the transfer.

    @staticmethod
    def _signature(offset: int, size: int) -> int:
        return int.from_bytes(_DMA_SIGNATURE[offset : offset + size], "little")

    def _write_high(self, size: int, value: int) -> None:
        if size == 4:
            self._address = int.from_bytes(value.to_bytes(4, "little"), "big") << 32

    def _write_low(self, size: int, value: int) -> None:
        if size != 4:
            return
        address = self._address | int.from_bytes(value.to_bytes(4, "little"), "big")
        self._address = 0
        try:
            control, length, target = _REQUEST.unpack(self._memory.read(address, _REQUEST.size))
            try:
                result = self._transfer(control, length, target)
            except SnpError:
                result = _ERROR
            self._memory.write(address, struct.pack(">I", result))
        except SnpError:
            # The request itself is not in memory that the host may use: there is nowhere to say so.
            return

    def _transfer(self, control: int, length: int, target: int) -> int:
        if control & _SELECT:
            self._select(control >> 16)
        if control & _READ:
            for done in range(0, length, _CHUNK):
                self._memory.write(target + done, self._take(min(_CHUNK, length - done)))
        elif control & _WRITE:
            return _ERROR
        elif control & _SKIP:
            self._offset += length
        return 0

    def dump(self) -> dict[str, Any]:
        return save_integers(self, self._SAVED)

    def load(self, state: dict[str, Any]) -> None:
        load_integers(self, self._SAVED, state)
