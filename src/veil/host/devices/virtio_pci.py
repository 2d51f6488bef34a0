# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI transport of virtio, modern interface only (virtio 1.2, section 4.1).

All structures but the MSI-X table are in an I/O BAR: a guest under SEV-ES reaches a port through a shorter #VC than it
reaches an MMIO address, which its handler has to decode and translate first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from veil.host.devices.pci import PciFunction
from veil.host.devices.virtqueue import DmaMemory, QueueError, Virtqueue

__all__ = ["VirtioPci"]

_VENDOR_CAPABILITY, _MSIX_CAPABILITY = 0x09, 0x11
_COMMON, _NOTIFY, _ISR, _DEVICE, _PCI_CFG = 1, 2, 3, 4, 5

_IO_BAR, _MSIX_BAR = 0, 1
_IO_SIZE, _MSIX_SIZE = 0x100, 0x1000
_DEVICE_OFFSET, _ISR_OFFSET, _NOTIFY_OFFSET = 0x40, 0x60, 0x80
_PBA_OFFSET = 0x800
_NOTIFY_MULTIPLIER = 2

_ACKNOWLEDGE, _DRIVER_OK, _FEATURES_OK, _NEEDS_RESET = 1, 4, 8, 64
_F_VERSION_1, _F_ACCESS_PLATFORM = 1 << 32, 1 << 33
_NO_VECTOR = 0xFFFF
_MSIX_ENABLE, _MSIX_MASK_ALL = 0x80, 0x40


class VirtioPci(PciFunction):
    """A virtio device; subclasses give device ID, features, queues and what they do."""

    def __init__(
        self,
        memory: DmaMemory,
        send_msi: Callable[[int, int], None],
        *,
        device_id: int,
        class_code: int,
        queues: int,
        features: int,
        io_address: int,
        mmio_address: int,
    ) -> None:
        super().__init__(
            vendor=0x1AF4, device=0x1040 + device_id, class_code=class_code, subsystem=(0x1AF4, 0x1100), revision=1
        )
        self.queues = [Virtqueue(memory) for _ in range(queues)]
        self._send_msi = send_msi
        # A guest with encrypted memory insists on both: the device may reach only what is shared with it.
        self._offered = features | _F_VERSION_1 | _F_ACCESS_PLATFORM
        self._vectors = queues + 1
        self.add_bar(_IO_BAR, _IO_SIZE, io_address, io=True)
        self.add_bar(_MSIX_BAR, _MSIX_SIZE, mmio_address, io=False)
        for kind, offset, length in (
            (_COMMON, 0, 0x38),
            (_ISR, _ISR_OFFSET, 1),
            (_DEVICE, _DEVICE_OFFSET, 0x20),
        ):
            self.add_capability(self._capability(kind, offset, length))
        notify_length = _NOTIFY_MULTIPLIER * queues
        self.add_capability(
            self._capability(_NOTIFY, _NOTIFY_OFFSET, notify_length, struct.pack("<I", _NOTIFY_MULTIPLIER))
        )
        body = struct.pack("<BBHII", _MSIX_CAPABILITY, 0, self._vectors - 1, _MSIX_BAR, _PBA_OFFSET | _MSIX_BAR)
        self._msix = self.add_capability(body, writable=b"\0\0\0\xc0")
        self._table = bytearray(16 * self._vectors)
        for index in range(self._vectors):
            self._table[16 * index + 12] = 1
        self._pending = 0
        self._reset()

    @staticmethod
    def _capability(kind: int, offset: int, length: int, extra: bytes = b"") -> bytes:
        size = 16 + len(extra)
        return struct.pack("<BBBBB3xII", _VENDOR_CAPABILITY, 0, size, kind, _IO_BAR, offset, length) + extra

    # For subclasses

    def device_config(self) -> bytes:
        """The device-specific configuration."""
        return b""

    def queue_notified(self, index: int) -> None:
        """The driver made buffers available; may raise QueueError."""

    def device_reset(self) -> None:
        """The driver reset the device."""

    @property
    def live(self) -> bool:
        """Has the driver finished its initialisation, and is the device in order?"""
        return bool(self._status & _DRIVER_OK) and not self._status & _NEEDS_RESET

    @property
    def features(self) -> int:
        """What the driver accepted."""
        return self._accepted

    def interrupt(self, queue: Virtqueue) -> None:
        """Used buffers are there."""
        self._isr |= 1
        self._signal(queue.vector)

    def fail(self) -> None:
        """Stop: the driver misbehaved (virtio 1.2, 2.1.2)."""
        self._status |= _NEEDS_RESET
        self._isr |= 2
        self._signal(self._config_vector)

    # MSI-X

    def _signal(self, vector: int) -> None:
        control = self.config[self._msix + 3]
        if vector >= self._vectors or not control & _MSIX_ENABLE:
            return
        low, high, data, mask = struct.unpack_from("<4I", self._table, 16 * vector)
        if mask & 1 or control & _MSIX_MASK_ALL:
            self._pending |= 1 << vector
        else:
            self._send_msi(low | high << 32, data)

    def _flush_pending(self) -> None:
        pending, self._pending = self._pending, 0
        for vector in range(self._vectors):
            if pending >> vector & 1:
                self._signal(vector)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Unmasking MSI-X lets pending messages go."""
        super().write_config(offset, size, value)
        if self._pending and self._msix <= offset < self._msix + 4:
            self._flush_pending()

    # BARs

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """A read of the I/O or MSI-X BAR."""
        if bar == _MSIX_BAR:
            if offset < len(self._table):
                return int.from_bytes(self._table[offset : offset + size], "little")
            return self._pending if offset == _PBA_OFFSET else 0
        if offset == _ISR_OFFSET:
            isr, self._isr = self._isr, 0
            return isr
        if _DEVICE_OFFSET <= offset < _ISR_OFFSET:
            return int.from_bytes(self.device_config()[offset - _DEVICE_OFFSET :][:size], "little")
        return self._read_common(offset)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """A write to the I/O or MSI-X BAR."""
        if bar == _MSIX_BAR:
            if offset + size <= len(self._table):
                self._table[offset : offset + size] = value.to_bytes(8, "little")[:size]
                self._flush_pending()
        elif offset >= _NOTIFY_OFFSET:
            self._guarded(lambda: self._notify((offset - _NOTIFY_OFFSET) // _NOTIFY_MULTIPLIER))
        elif offset < _DEVICE_OFFSET:
            self._write_common(offset, size, value)

    def _notify(self, index: int) -> None:
        if self.live and index < len(self.queues):
            self.queue_notified(index)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except QueueError:
            self.fail()

    def _queue(self) -> Virtqueue | None:
        return self.queues[self._selected] if self._selected < len(self.queues) else None

    def _read_common(self, offset: int) -> int:
        queue = self._queue()
        if offset == 0x04:
            return self._offered >> 32 * self._device_select & 0xFFFFFFFF if self._device_select < 2 else 0
        if offset == 0x0C:
            return self._accepted >> 32 * self._driver_select & 0xFFFFFFFF if self._driver_select < 2 else 0
        simple = {
            0x00: self._device_select, 0x08: self._driver_select, 0x10: self._config_vector, 0x12: len(self.queues),
            0x14: self._status, 0x15: 0, 0x16: self._selected,
        }  # fmt: skip
        if offset in simple:
            return simple[offset]
        if queue is None:
            return 0
        return {
            0x18: queue.size, 0x1A: queue.vector, 0x1C: int(queue.enabled), 0x1E: self._selected,
            0x20: queue.descriptors & 0xFFFFFFFF, 0x24: queue.descriptors >> 32, 0x28: queue.driver & 0xFFFFFFFF,
            0x2C: queue.driver >> 32, 0x30: queue.device & 0xFFFFFFFF, 0x34: queue.device >> 32,
        }.get(offset, 0)  # fmt: skip

    def _write_common(self, offset: int, size: int, value: int) -> None:
        if offset == 0x00:
            self._device_select = value
        elif offset == 0x08:
            self._driver_select = value
        elif offset == 0x0C and self._driver_select < 2:
            shift = 32 * self._driver_select
            self._accepted = self._accepted & ~(0xFFFFFFFF << shift) | (value & 0xFFFFFFFF) << shift
        elif offset == 0x10:
            self._config_vector = value if value < self._vectors else _NO_VECTOR
        elif offset == 0x14:
            self._write_status(value & 0xFF)
        elif offset == 0x16:
            self._selected = value
        else:
            queue = self._queue()
            if queue is not None:
                self._write_queue(queue, offset, value)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            self.device_reset()
            return
        if value & _FEATURES_OK and (
            self._accepted & ~self._offered or ~self._accepted & (_F_VERSION_1 | _F_ACCESS_PLATFORM)
        ):
            value &= ~_FEATURES_OK
        self._status = value | self._status & _NEEDS_RESET

    def _write_queue(self, queue: Virtqueue, offset: int, value: int) -> None:
        if queue.enabled and offset != 0x1A:
            return
        low, high = 0xFFFFFFFF, 0xFFFFFFFF << 32
        if offset == 0x18:
            queue.size = value
        elif offset == 0x1A:
            queue.vector = value if value < self._vectors else _NO_VECTOR
        elif offset == 0x1C and value == 1:
            self._guarded(queue.enable)
        elif offset == 0x20:
            queue.descriptors = queue.descriptors & high | value & low
        elif offset == 0x24:
            queue.descriptors = queue.descriptors & low | (value & low) << 32
        elif offset == 0x28:
            queue.driver = queue.driver & high | value & low
        elif offset == 0x2C:
            queue.driver = queue.driver & low | (value & low) << 32
        elif offset == 0x30:
            queue.device = queue.device & high | value & low
        elif offset == 0x34:
            queue.device = queue.device & low | (value & low) << 32

    _status: int
    _isr: int
    _accepted: int
    _device_select: int
    _driver_select: int
    _selected: int
    _config_vector: int

    def _reset(self) -> None:
        self._status = self._isr = self._accepted = 0
        self._device_select = self._driver_select = self._selected = 0
        self._config_vector = _NO_VECTOR
        for queue in self.queues:
            queue.reset()

    _SAVED = ("_status", "_isr", "_accepted", "_device_select", "_driver_select", "_selected", "_config_vector")

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            **super().state(),
            "table": bytes(self._table),
            "pending": self._pending,
            "queues": [queue.state() for queue in self.queues],
            "registers": [getattr(self, name) for name in self._SAVED],
        }

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        super().load(state)
        self._table[:] = state["table"]
        self._pending = state["pending"]
        for queue, saved in zip(self.queues, state["queues"], strict=True):
            queue.load(saved)
        for name, value in zip(self._SAVED, state["registers"], strict=True):
            setattr(self, name, value)
