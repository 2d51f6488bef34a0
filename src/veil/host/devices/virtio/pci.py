# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtio device on PCI, without the legacy interface (virtio 1.2, 4.1).

All structures but the MSI-X table are in an I/O BAR: for an SNP guest an access to a port costs half of one to memory,
whose instruction the #VC handler has to decode first. Linux' driver takes either (vp_modern_map_capability).
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Any

from veil.host.devices._state import checked_int, load_integers, save_integers
from veil.host.devices.pci.function import (
    COMMAND,
    COMMAND_MASTER,
    COMMAND_NO_INTX,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    QEMU_SUBSYSTEM,
    PciFunction,
)
from veil.host.devices.virtio.msix import MSIX_BAR_SIZE, Msix
from veil.host.devices.virtio.virtqueue import MAX_CHAIN_BYTES, QueueError, Virtqueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.virtio.virtqueue import DmaMemory

__all__ = ["DeviceStatus", "Feature", "VirtioPci"]

_VENDOR = 0x1AF4
_FIRST_MODERN_ID = 0x1040
_REVISION = 1

_IO_BAR, _MSIX_BAR = 0, 1
_IO_SIZE = 0x80
# Where the structures are in the I/O BAR.
_COMMON, _COMMON_SIZE = 0x00, 0x38
_ISR, _ISR_SIZE = 0x38, 1
_NOTIFY, _NOTIFY_SIZE = 0x3C, 4
_DEVICE, _DEVICE_SIZE = 0x40, 0x40

_CAP_VENDOR = 0x09
_CAP_COMMON, _CAP_NOTIFY, _CAP_ISR, _CAP_DEVICE, _CAP_PCI = 1, 2, 3, 4, 5
_CAP_BAR, _CAP_OFFSET, _CAP_LENGTH, _CAP_DATA = 4, 8, 12, 16

_NO_VECTOR = 0xFFFF
_QUEUE_SIZE = 128
_ISR_QUEUE, _ISR_CONFIG = 1, 2


class Feature(enum.IntFlag):
    """Feature bits of all devices (virtio 1.2, 6)."""

    VERSION_1 = 1 << 32
    #: the device obeys the platform: in an SEV guest, it sees only memory that the guest shares
    ACCESS_PLATFORM = 1 << 33


class DeviceStatus(enum.IntFlag):
    """Virtio 1.2, 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 0x40
    FAILED = 0x80


_REQUIRED = int(Feature.VERSION_1 | Feature.ACCESS_PLATFORM)
# As plain integers: arithmetic on flags is slow, and this is asked at each notification.
_DRIVER_OK = int(DeviceStatus.DRIVER_OK)
_FEATURES_OK = int(DeviceStatus.FEATURES_OK)
_NEEDS_RESET = int(DeviceStatus.NEEDS_RESET)

# The common configuration structure (4.1.4.3): offset, size, and the method that reads it.
_FIELDS = {
    0x00: (4, "device_feature_select"), 0x04: (4, "device_feature"),
    0x08: (4, "driver_feature_select"), 0x0C: (4, "driver_feature"),
    0x10: (2, "config_vector"), 0x12: (2, "num_queues"), 0x14: (1, "status"), 0x15: (1, "generation"),
    0x16: (2, "queue_select"), 0x18: (2, "queue_size"), 0x1A: (2, "queue_vector"), 0x1C: (2, "queue_enable"),
    0x1E: (2, "queue_notify_off"), 0x20: (4, "desc_low"), 0x24: (4, "desc_high"), 0x28: (4, "avail_low"),
    0x2C: (4, "avail_high"), 0x30: (4, "used_low"), 0x34: (4, "used_high"),
}  # fmt: skip


class VirtioPci(PciFunction):
    """The transport. A device implements `serve(queue)`, `device_config()` and `device_reset()`.

    `send_message(address, data)` delivers an MSI-X message; `set_irq(level)` is the INTA# line, for a guest that uses
    no messages.
    """

    _SAVED = (
        "_device_select", "_driver_select", "driver_features", "_config_vector", "status", "_generation",
        "_queue_select", "_isr",
    )  # fmt: skip

    def __init__(
        self,
        memory: DmaMemory,
        send_message: Callable[[int, int], None],
        set_irq: Callable[[bool], None],
        *,
        device_id: int,
        class_code: int,
        queues: int,
        features: int,
        io_address: int,
        mmio_address: int,
        irq: int,
        queue_size: int = _QUEUE_SIZE,
        max_chain: int = MAX_CHAIN_BYTES,
    ) -> None:
        super().__init__(
            vendor=_VENDOR,
            device=_FIRST_MODERN_ID + device_id,
            class_code=class_code,
            revision=_REVISION,
            subsystem=QEMU_SUBSYSTEM,
        )
        self._set_irq = set_irq
        self.features = features | _REQUIRED
        self.queues = [Virtqueue(memory, queue_size, max_chain) for _ in range(queues)]
        self._vectors = [_NO_VECTOR] * queues
        self._device_select = self._driver_select = 0
        self.driver_features = 0
        self._config_vector = _NO_VECTOR
        self.status = 0
        self._generation = 0
        self._queue_select = 0
        self._isr = 0
        #: why the device wants to be reset; for people
        self.fault: str | None = None
        self.on_fault: Callable[[str], None] | None = None

        self.config[INTERRUPT_LINE], self.config[INTERRUPT_PIN] = irq, 1
        self.config[COMMAND] |= COMMAND_MASTER
        self.msix = Msix(self, queues + 1, _MSIX_BAR, send_message)
        self.add_bar(_IO_BAR, _IO_SIZE, io_address, self._io_read, self._io_write, io=True)
        self.add_bar(_MSIX_BAR, MSIX_BAR_SIZE, mmio_address, self.msix.read, self.msix.write, io=False)
        self._add_structure(_CAP_COMMON, _COMMON, _COMMON_SIZE)
        # A multiplier of 0: all queues share one register, and the value written names the queue.
        self._add_structure(_CAP_NOTIFY, _NOTIFY, _NOTIFY_SIZE, struct.pack("<I", 0))
        self._add_structure(_CAP_ISR, _ISR, _ISR_SIZE)
        self._add_structure(_CAP_DEVICE, _DEVICE, _DEVICE_SIZE)
        self._window = self._add_structure(_CAP_PCI, 0, 0, bytes(4))
        writable = self.writable
        writable[self._window + _CAP_BAR] = 0xFF
        for offset in (_CAP_OFFSET, _CAP_LENGTH):
            writable[self._window + offset : self._window + offset + 4] = b"\xff" * 4
        self._readers = {offset: getattr(self, f"_get_{name}") for offset, (_, name) in _FIELDS.items()}
        self._writers = {
            offset: getattr(self, f"_set_{name}")
            for offset, (_, name) in _FIELDS.items()
            if hasattr(self, f"_set_{name}")
        }

    def _add_structure(self, kind: int, offset: int, length: int, extra: bytes = b"") -> int:
        bar = _IO_BAR
        body = struct.pack("<BBBBB3xII", _CAP_VENDOR, 0, 16 + len(extra), kind, bar, offset, length) + extra
        return self.add_capability(body)

    # What devices implement and use

    def serve(self, index: int) -> None:
        """The driver notified a queue; QueueError if it is broken."""
        raise NotImplementedError

    def device_config(self) -> bytes:
        """The device-specific configuration structure."""
        raise NotImplementedError

    def device_reset(self) -> None:
        """The driver reset the device."""
        raise NotImplementedError

    @property
    def live(self) -> bool:
        """May the device touch its queues?"""
        return self.status & (_DRIVER_OK | _NEEDS_RESET) == _DRIVER_OK

    def guarded(self, action: Callable[[], None]) -> None:
        """Work on queues: what the driver broke ends in a request to be reset, nowhere else."""
        try:
            action()
        except QueueError as error:
            self._break(str(error))

    def _serve(self, index: int) -> None:
        try:
            self.serve(index)
        except QueueError as error:
            self._break(f"queue {index}: {error}")

    def _break(self, reason: str) -> None:
        self.fault = reason
        self.status |= _NEEDS_RESET
        if self.status & _DRIVER_OK:
            self.config_changed()
        if self.on_fault is not None:
            self.on_fault(reason)

    def interrupt(self, index: int) -> None:
        """Tell the driver about used chains, unless it does not want to hear."""
        if self.queues[index].wants_interrupt():
            self._signal(self._vectors[index], _ISR_QUEUE)

    def config_changed(self) -> None:
        """Tell the driver to look at the configuration and the status."""
        self._generation = self._generation + 1 & 0xFF
        self._signal(self._config_vector, _ISR_CONFIG)

    def _signal(self, vector: int, cause: int) -> None:
        if self.msix.enabled:
            self.msix.signal(vector)
        else:
            self._isr |= cause
            self._update_line()

    def _update_line(self) -> None:
        self._set_irq(bool(self._isr) and not self.msix.enabled and not self.command & COMMAND_NO_INTX)

    # The BAR

    def _io_read(self, offset: int, size: int) -> int:
        if offset < _COMMON_SIZE:
            return self._common_read(offset, size)
        if offset == _ISR and size == 1:
            isr, self._isr = self._isr, 0
            self._update_line()
            return isr
        if offset >= _DEVICE:
            start = offset - _DEVICE
            return int.from_bytes(self.device_config()[start : start + size], "little")
        return 0

    def _io_write(self, offset: int, size: int, value: int) -> None:
        if offset == _NOTIFY:
            if size <= 2 and value < len(self.queues) and self.live and self.queues[value].enabled:
                self._serve(value)
        elif offset < _COMMON_SIZE:
            self._common_write(offset, size, value)

    def _common_read(self, offset: int, size: int) -> int:
        field = _FIELDS.get(offset)
        if field is not None and size <= field[0]:
            value: int = self._readers[offset]()
            return value & (1 << 8 * size) - 1
        return 0

    def _common_write(self, offset: int, size: int, value: int) -> None:
        # Drivers access a field in its own width (4.1.3.1).
        field = _FIELDS.get(offset)
        writer = self._writers.get(offset)
        if field is not None and writer is not None and size == field[0]:
            writer(value)

    # Fields of the common configuration

    def _get_device_feature_select(self) -> int:
        return self._device_select

    def _set_device_feature_select(self, value: int) -> None:
        self._device_select = value

    def _get_device_feature(self) -> int:
        return self.features >> 32 * self._device_select & 0xFFFFFFFF if self._device_select < 2 else 0

    def _get_driver_feature_select(self) -> int:
        return self._driver_select

    def _set_driver_feature_select(self, value: int) -> None:
        self._driver_select = value

    def _get_driver_feature(self) -> int:
        return self.driver_features >> 32 * self._driver_select & 0xFFFFFFFF if self._driver_select < 2 else 0

    def _set_driver_feature(self, value: int) -> None:
        if self._driver_select < 2 and not self.status & _FEATURES_OK:
            shift = 32 * self._driver_select
            self.driver_features = self.driver_features & ~(0xFFFFFFFF << shift) | value << shift

    def _get_config_vector(self) -> int:
        return self._config_vector

    def _set_config_vector(self, value: int) -> None:
        self._config_vector = value if value < self.msix.vectors else _NO_VECTOR

    def _get_num_queues(self) -> int:
        return len(self.queues)

    def _get_status(self) -> int:
        return self.status

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        before = self.status
        # Only a reset clears bits; NEEDS_RESET is the device's.
        status = before | value & ~_NEEDS_RESET
        if status & ~before & _FEATURES_OK:
            refused = self.driver_features & ~self.features or _REQUIRED & ~self.driver_features
            if refused:
                status &= ~_FEATURES_OK
        if not status & _FEATURES_OK:
            status &= ~_DRIVER_OK
        self.status = status
        if status & ~before & _DRIVER_OK:
            # What the driver put into queues before this moment, it need not notify again.
            for index, queue in enumerate(self.queues):
                if queue.enabled and self.live:
                    self._serve(index)

    def _get_generation(self) -> int:
        return self._generation

    def _get_queue_select(self) -> int:
        return self._queue_select

    def _set_queue_select(self, value: int) -> None:
        self._queue_select = value

    @property
    def _selected(self) -> Virtqueue | None:
        return self.queues[self._queue_select] if self._queue_select < len(self.queues) else None

    def _get_queue_size(self) -> int:
        queue = self._selected
        return queue.size if queue is not None else 0

    def _set_queue_size(self, value: int) -> None:
        queue = self._selected
        if queue is not None and not queue.enabled:
            queue.size = value

    def _get_queue_vector(self) -> int:
        return self._vectors[self._queue_select] if self._queue_select < len(self.queues) else _NO_VECTOR

    def _set_queue_vector(self, value: int) -> None:
        if self._queue_select < len(self.queues):
            self._vectors[self._queue_select] = value if value < self.msix.vectors else _NO_VECTOR

    def _get_queue_enable(self) -> int:
        queue = self._selected
        return int(queue is not None and queue.enabled)

    def _set_queue_enable(self, value: int) -> None:
        queue = self._selected
        # The driver MUST NOT write 0 (4.1.4.3.2), nor enable before the features are agreed.
        if value == 1 and queue is not None and not queue.enabled and self.status & _FEATURES_OK:
            self.guarded(queue.enable)

    def _get_queue_notify_off(self) -> int:
        return 0

    def _get_address(self, name: str, shift: int) -> int:
        queue = self._selected
        return 0 if queue is None else int(getattr(queue, name)) >> shift & 0xFFFFFFFF

    def _set_address(self, name: str, shift: int, value: int) -> None:
        queue = self._selected
        if queue is not None and not queue.enabled:
            setattr(queue, name, getattr(queue, name) & ~(0xFFFFFFFF << shift) | value << shift)

    def _get_desc_low(self) -> int:
        return self._get_address("desc", 0)

    def _set_desc_low(self, value: int) -> None:
        self._set_address("desc", 0, value)

    def _get_desc_high(self) -> int:
        return self._get_address("desc", 32)

    def _set_desc_high(self, value: int) -> None:
        self._set_address("desc", 32, value)

    def _get_avail_low(self) -> int:
        return self._get_address("avail", 0)

    def _set_avail_low(self, value: int) -> None:
        self._set_address("avail", 0, value)

    def _get_avail_high(self) -> int:
        return self._get_address("avail", 32)

    def _set_avail_high(self, value: int) -> None:
        self._set_address("avail", 32, value)

    def _get_used_low(self) -> int:
        return self._get_address("used", 0)

    def _set_used_low(self, value: int) -> None:
        self._set_address("used", 0, value)

    def _get_used_high(self) -> int:
        return self._get_address("used", 32)

    def _set_used_high(self, value: int) -> None:
        self._set_address("used", 32, value)

    def _reset(self) -> None:
        self.status = 0
        self._device_select = self._driver_select = self.driver_features = 0
        self._config_vector = _NO_VECTOR
        self._queue_select = 0
        self._isr = 0
        self.fault = None
        for index, queue in enumerate(self.queues):
            queue.reset()
            self._vectors[index] = _NO_VECTOR
        self._update_line()
        self.device_reset()

    # Configuration space: the window of VIRTIO_PCI_CAP_PCI_CFG (4.1.4.9)

    def _window_target(self) -> tuple[int, int] | None:
        window = self._window
        bar = self.config[window + _CAP_BAR]
        offset, length = struct.unpack_from("<II", self.config, window + _CAP_OFFSET)
        if bar != _IO_BAR or length not in (1, 2, 4) or offset % length or offset + length > _IO_SIZE:
            return None
        return offset, length

    def config_read(self, offset: int, size: int) -> int:
        if offset == self._window + _CAP_DATA:
            target = self._window_target()
            if target is not None:
                self.config[offset : offset + 4] = self._io_read(*target).to_bytes(4, "little")
        return super().config_read(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        self.msix.config_written(offset, size)
        self._update_line()

    def config_write(self, offset: int, size: int, value: int) -> None:
        if offset == self._window + _CAP_DATA:
            target = self._window_target()
            if target is not None:
                self._io_write(*target, value & (1 << 8 * target[1]) - 1)
            return
        super().config_write(offset, size, value)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot; the configuration space is saved with the bus."""
        return {
            "registers": save_integers(self, self._SAVED),
            "vectors": list(self._vectors),
            "queues": [queue.dump() for queue in self.queues],
            "msix": self.msix.dump(),
            "fault": self.fault,
        }

    def load(self, state: dict[str, Any]) -> None:
        vectors = [checked_int(vector) for vector in state["vectors"]]
        if len(vectors) != len(self.queues):
            raise ValueError(f"{len(vectors)} queues")
        for queue, saved in zip(self.queues, state["queues"], strict=True):
            queue.load(saved)
        self.msix.load(state["msix"])
        load_integers(self, self._SAVED, state["registers"])
        self._vectors = vectors
        self.fault = state["fault"]
        # Others may share the line; the controller's own state is loaded after this.
        self._update_line()
