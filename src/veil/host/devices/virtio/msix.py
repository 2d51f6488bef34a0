# SPDX-License-Identifier: GPL-2.0-or-later
"""The MSI-X capability, its table and its pending bits (PCI local bus specification 3.0, 6.8.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.pci.function import PciFunction

__all__ = ["MSIX_BAR_SIZE", "Msix"]

MSIX_BAR_SIZE = 0x1000
_PENDING = 0x800
_CAPABILITY_ID = 0x11
_ENTRY = 16
_CONTROL_OFFSET = 12
_ENTRY_MASKED = 1
_ENABLE, _FUNCTION_MASK = 1 << 15, 1 << 14


class Msix:
    """`vectors` entries in a memory BAR of `MSIX_BAR_SIZE` bytes; `send(address, data)` writes a message."""

    def __init__(self, function: PciFunction, vectors: int, bar: int, send: Callable[[int, int], None]) -> None:
        self.vectors = vectors
        self._function = function
        self._send = send
        self._table = bytearray(_ENTRY * vectors)
        self._pending = 0
        self._mask_all()
        body = struct.pack("<BBHII", _CAPABILITY_ID, 0, vectors - 1, bar, _PENDING | bar)
        self._capability = function.add_capability(body, b"\0\0\0\xc0")

    def _mask_all(self) -> None:
        for vector in range(self.vectors):
            self._table[_ENTRY * vector + _CONTROL_OFFSET] = _ENTRY_MASKED

    def _control(self) -> int:
        return self._function.config_read(self._capability + 2, 2)

    @property
    def enabled(self) -> bool:
        """Does the device signal by messages?"""
        return bool(self._control() & _ENABLE)

    def signal(self, vector: int) -> None:
        """The device interrupts."""
        if vector >= self.vectors:
            return
        control = self._control()
        if control & _FUNCTION_MASK or self._table[_ENTRY * vector + _CONTROL_OFFSET] & _ENTRY_MASKED:
            self._pending |= 1 << vector
        elif control & _ENABLE:
            address, data = struct.unpack_from("<QI", self._table, _ENTRY * vector)
            self._send(address, data)

    def config_written(self, offset: int, size: int) -> None:
        """The message control register may have changed."""
        if offset <= self._capability + 3 and self._capability + 2 < offset + size:
            self._deliver_pending()

    def _deliver_pending(self) -> None:
        pending = self._pending
        while pending:
            vector = pending.bit_length() - 1
            pending ^= 1 << vector
            if not self._table[_ENTRY * vector + _CONTROL_OFFSET] & _ENTRY_MASKED:
                control = self._control()
                if control & _ENABLE and not control & _FUNCTION_MASK:
                    self._pending &= ~(1 << vector)
                    self.signal(vector)

    def read(self, offset: int, size: int) -> int:
        """A load from the BAR."""
        if offset + size <= len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= _PENDING and offset + size <= _PENDING + 8:
            return self._pending >> 8 * (offset - _PENDING) & (1 << 8 * size) - 1
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the BAR: aligned doublewords and quadwords into the table; the pending bits are read-only."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        # Of the vector control doubleword only the mask exists.
        control = offset // _ENTRY * _ENTRY + _CONTROL_OFFSET
        self._table[control : control + 4] = bytes((self._table[control] & _ENTRY_MASKED, 0, 0, 0))
        if self._pending:
            self._deliver_pending()

    def dump(self) -> dict[str, Any]:
        return {"table": bytes(self._table), "pending": self._pending}

    def load(self, state: dict[str, Any]) -> None:
        table = bytes(state["table"])
        if len(table) != len(self._table):
            raise ValueError(f"an MSI-X table of {len(table)} bytes")
        self._table[:] = table
        self._pending = int(state["pending"]) & (1 << self.vectors) - 1
