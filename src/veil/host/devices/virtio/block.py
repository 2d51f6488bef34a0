# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-blk: a disk with one queue (virtio 1.2, 5.2).

A request is served when the driver tells of it, in the hypervisor's thread: the guest waits as long as the image's
file takes. Everything in the queue may be wrong, and may change while it is read: a header is copied once, its sector
and length are checked against the disk, and data goes between the file and buffers that the queue has checked.
"""

from __future__ import annotations

import ctypes
import enum
from typing import TYPE_CHECKING, Any

from veil.formats.offsets import check_offsets
from veil.host.devices.storage.backend import StorageError
from veil.host.devices.storage.image import SECTOR
from veil.host.devices.virtio.pci import VirtioPci
from veil.host.devices.virtio.virtqueue import QueueError
from veil.host.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.storage.backend import Backend
    from veil.host.devices.virtio.virtqueue import Chain, DmaMemory

__all__ = ["BlockConfig", "BlockFeature", "RequestHeader", "RequestStatus", "RequestType", "VirtioBlock"]

_DEVICE_ID = 2
#: mass storage, other
_CLASS = 0x018000
_QUEUE = 0
#: Of one buffer of data, and how many a request may have.
_MAX_SEGMENT, _MAX_SEGMENTS = 32 << 10, 30
#: So a driver that keeps to that and bounces its buffers has at most 2 MiB in flight.
_QUEUE_SIZE = 64
#: OVMF's driver does not keep to it: it passes on what GRUB asks for, at most 10 MiB in one piece.
_MAX_REQUEST = 16 << 20
_BLOCK_SIZE = SECTOR
_ID_LENGTH = 20


class BlockFeature(enum.IntFlag):
    """Feature bits (5.2.3)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9


class RequestType(enum.IntEnum):
    """5.2.6."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class RequestStatus(enum.IntEnum):
    """5.2.6."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class RequestHeader(ctypes.LittleEndianStructure):
    """struct virtio_blk_req (5.2.6), as far as the device reads it; data and the status byte follow."""

    _pack_ = 1
    _fields_ = [("type", ctypes.c_uint32), ("reserved", ctypes.c_uint32), ("sector", ctypes.c_uint64)]

    type: int
    sector: int


class BlockConfig(ctypes.LittleEndianStructure):
    """struct virtio_blk_config (5.2.4) up to blk_size; what follows belongs to features that are not offered."""

    _pack_ = 1
    _fields_ = [
        ("capacity", ctypes.c_uint64),
        ("size_max", ctypes.c_uint32),
        ("seg_max", ctypes.c_uint32),
        ("cylinders", ctypes.c_uint16),
        ("heads", ctypes.c_uint8),
        ("sectors", ctypes.c_uint8),
        ("blk_size", ctypes.c_uint32),
    ]

    capacity: int
    size_max: int
    seg_max: int
    blk_size: int


check_offsets(RequestHeader, 0x10, {"sector": 8})
check_offsets(BlockConfig, 0x18, {"size_max": 8, "seg_max": 0xC, "cylinders": 0x10, "heads": 0x12, "blk_size": 0x14})

_HEADER = ctypes.sizeof(RequestHeader)
_IN, _OUT, _FLUSH, _GET_ID = map(int, RequestType)
_OK, _IOERR, _UNSUPP = map(int, RequestStatus)


class VirtioBlock(VirtioPci):
    """The device. `serial` is what the guest sees at /sys/block/vdX/serial: at most 20 bytes."""

    def __init__(
        self,
        memory: DmaMemory,
        send_message: Callable[[int, int], None],
        set_irq: Callable[[bool], None],
        backend: Backend,
        *,
        serial: bytes,
        io_address: int,
        mmio_address: int,
        irq: int,
    ) -> None:
        self._backend = backend
        self._serial = serial[:_ID_LENGTH].ljust(_ID_LENGTH, b"\0")
        #: told, for people, why a request failed that a sound driver may make
        self.on_error: Callable[[str], None] | None = None
        writable = BlockFeature.RO if backend.read_only else BlockFeature.FLUSH
        super().__init__(
            memory,
            send_message,
            set_irq,
            device_id=_DEVICE_ID,
            class_code=_CLASS,
            queues=1,
            features=int(BlockFeature.SIZE_MAX | BlockFeature.SEG_MAX | BlockFeature.BLK_SIZE | writable),
            io_address=io_address,
            mmio_address=mmio_address,
            irq=irq,
            queue_size=_QUEUE_SIZE,
            max_chain=_MAX_REQUEST,
        )

    def device_config(self) -> bytes:
        return bytes(
            BlockConfig(
                capacity=self._backend.size // SECTOR,
                size_max=_MAX_SEGMENT,
                seg_max=_MAX_SEGMENTS,
                blk_size=_BLOCK_SIZE,
            )
        )

    def device_reset(self) -> None:
        """No request waits across two notifications."""

    def serve(self, index: int) -> None:
        """All requests that wait. The guest adds none meanwhile: its VCPUs do not run."""
        queue = self.queues[index]
        moved = False
        for chain in queue.waiting():
            queue.push(chain, self._request(chain))
            moved = True
        if moved:
            self.interrupt(index)

    def _request(self, chain: Chain) -> int:
        """Serve one; returns how many bytes were written for the driver."""
        queue = self.queues[_QUEUE]
        # The driver may cut a request into buffers as it likes (2.7.4.4): the last byte is the status.
        room = chain.room - 1
        if room < 0:
            raise QueueError("a request without room for its status")
        given = queue.read_chain(chain)
        if len(given) < _HEADER:
            raise QueueError(f"a request of {len(given)} bytes; its header has {_HEADER}")
        header = RequestHeader.from_buffer_copy(given)
        try:
            status, answer = self._answer(header.type, header.sector * SECTOR, given[_HEADER:], room)
        except StorageError as error:
            status, answer = _IOERR, b""
            if self.on_error is not None:
                self.on_error(str(error))
        return queue.write_chain(chain, answer.ljust(room, b"\0") + bytes((status,)))

    def _answer(self, kind: int, offset: int, data: bytes, room: int) -> tuple[int, bytes]:
        backend = self._backend
        if kind == _IN:
            if not self._is_on_disk(offset, room):
                return _IOERR, b""
            return _OK, backend.read(offset, room)
        if kind == _OUT:
            if backend.read_only or not self._is_on_disk(offset, len(data)):
                return _IOERR, b""
            backend.write(offset, data)
            return _OK, b""
        if kind == _FLUSH:
            backend.flush()
            return _OK, b""
        if kind == _GET_ID and room >= _ID_LENGTH:
            return _OK, self._serial
        return _UNSUPP, b""

    def _is_on_disk(self, offset: int, length: int) -> bool:
        return length % SECTOR == 0 and length > 0 and offset + length <= self._backend.size

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """The disk's own state is part of it (`Backend.dump`). Raises HostError if that cannot be had."""
        try:
            return super().dump() | {"disk": self._backend.dump()}
        except StorageError as error:
            raise HostError(f"no snapshot of the disk: {error}") from error

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot; raises HostError if the disk is not as it was, or cannot be made so."""
        try:
            self._backend.load(state["disk"])
        except StorageError as error:
            raise HostError(f"the disk of the snapshot cannot be had again: {error}") from error
        super().load(state)
