# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-net: a network card with a queue for each direction and no offloads (virtio 1.2, 5.1).

A frame is one chain: the header, then the frame, which is never longer than Ethernet's. What is at the other end of the
cable is not the card's business. It loses frames, as Ethernet does: those for a guest whose driver is not there, and
those that a snapshot would have to keep.
"""

from __future__ import annotations

import ctypes
import enum
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from veil.formats.offsets import check_offsets
from veil.host.devices.virtio.pci import VirtioPci

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from veil.host.devices.virtio.virtqueue import DmaMemory

__all__ = ["MAX_FRAME", "MIN_FRAME", "Cable", "NetConfig", "NetFeature", "NetHeader", "VirtioNet"]

_DEVICE_ID = 1
#: Ethernet
_CLASS = 0x020000
_RECEIVE, _TRANSMIT = 0, 1
_QUEUE_SIZE = 256
#: Drivers give a page or two for a frame.
_MAX_CHAIN = 64 << 10
#: bytes of a frame: two addresses and a type; the same, a VLAN's tag and 1500 bytes
MIN_FRAME, MAX_FRAME = 14, 1518


class NetFeature(enum.IntFlag):
    """Feature bits (5.1.3)."""

    MAC = 1 << 5
    STATUS = 1 << 16


class NetHeader(ctypes.LittleEndianStructure):
    """struct virtio_net_hdr (5.1.6) without the legacy interface. All of it but num_buffers is for offloads."""

    _pack_ = 1
    _fields_ = [
        ("flags", ctypes.c_uint8),
        ("gso_type", ctypes.c_uint8),
        ("hdr_len", ctypes.c_uint16),
        ("gso_size", ctypes.c_uint16),
        ("csum_start", ctypes.c_uint16),
        ("csum_offset", ctypes.c_uint16),
        ("num_buffers", ctypes.c_uint16),
    ]


class NetConfig(ctypes.LittleEndianStructure):
    """struct virtio_net_config (5.1.4) up to status; what follows belongs to features that are not offered."""

    _pack_ = 1
    _fields_ = [("mac", ctypes.c_uint8 * 6), ("status", ctypes.c_uint16)]


check_offsets(NetHeader, 12, {"hdr_len": 2, "gso_size": 4, "csum_start": 6, "csum_offset": 8, "num_buffers": 10})
check_offsets(NetConfig, 8, {"status": 6})

_HEADER = ctypes.sizeof(NetHeader)
#: The device MUST set num_buffers to 1 without VIRTIO_NET_F_MRG_RXBUF (5.1.6.4.1).
_RECEIVED = bytes(NetHeader(num_buffers=1))
_LINK_UP = 1


class Cable(Protocol):
    """What the card is plugged into. For the hypervisor's thread."""

    def send(self, frame: bytes) -> bool:
        """Take a frame of the guest's. False: it cannot now; `VirtioNet.resume` is called when it can."""

    def taken(self) -> None:
        """All that was received is with the guest or lost: more may come."""


class VirtioNet(VirtioPci):
    """The card."""

    def __init__(
        self,
        memory: DmaMemory,
        send_message: Callable[[int, int], None],
        set_irq: Callable[[bool], None],
        cable: Cable,
        *,
        mac: bytes,
        io_address: int,
        mmio_address: int,
        irq: int,
    ) -> None:
        self._cable = cable
        self._mac = mac
        self._plugged = True
        #: frames for which the guest has no buffers yet; the cable brings no more meanwhile
        self._inbox: deque[bytes] = deque()
        #: a frame of the guest's that the cable did not take yet
        self._outgoing: bytes | None = None
        super().__init__(
            memory,
            send_message,
            set_irq,
            device_id=_DEVICE_ID,
            class_code=_CLASS,
            queues=2,
            features=int(NetFeature.MAC | NetFeature.STATUS),
            io_address=io_address,
            mmio_address=mmio_address,
            irq=irq,
            queue_size=_QUEUE_SIZE,
            max_chain=_MAX_CHAIN,
        )

    # What the other end does

    def receive(self, frames: Iterable[bytes]) -> None:
        """Frames for the guest; `Cable.taken` follows."""
        if self.live and self.queues[_RECEIVE].enabled:
            self._inbox.extend(filter(_is_frame, frames))
            self.guarded(self._deliver)
        else:
            self._cable.taken()

    def resume(self) -> None:
        """The cable takes frames again."""
        if self.live and self.queues[_TRANSMIT].enabled:
            self.guarded(self._transmit)

    def announce(self) -> None:
        """Somebody is at the other end: the driver of a guest of a snapshot may have been told otherwise."""
        if self.live:
            self.config_changed()

    def unplug(self) -> None:
        """Nobody is at the other end any more."""
        self._plugged = False
        self._outgoing = None
        if self.live:
            self.config_changed()
            self.resume()

    # Queues

    def device_config(self) -> bytes:
        return bytes(NetConfig((ctypes.c_uint8 * 6)(*self._mac), _LINK_UP if self._plugged else 0))

    def device_reset(self) -> None:
        """What is on its way is lost."""
        self._outgoing = None
        self._inbox.clear()
        self._cable.taken()

    def serve(self, index: int) -> None:
        if index == _TRANSMIT:
            self._transmit()
        else:
            self._deliver()

    def _deliver(self) -> None:
        queue = self.queues[_RECEIVE]
        moved = False
        while self._inbox:
            chain = queue.pop_or_ask()
            if chain is None:
                break
            data = _RECEIVED + self._inbox.popleft()
            # A buffer that is too small comes back empty: the frame is lost.
            queue.push(chain, queue.write_chain(chain, data) if len(data) <= chain.room else 0)
            moved = True
        if moved:
            self.interrupt(_RECEIVE)
        if not self._inbox:
            queue.set_quiet(True)
            self._cable.taken()

    def _transmit(self) -> None:
        if self._outgoing is not None and not self._sends(self._outgoing):
            return
        self._outgoing = None
        queue = self.queues[_TRANSMIT]
        moved = False
        for chain in queue.waiting():
            frame = queue.read_chain(chain)[_HEADER:]
            queue.push(chain, 0)
            moved = True
            if not self._sends(frame):
                self._outgoing = frame
                break
        if moved:
            self.interrupt(_TRANSMIT)

    def _sends(self, frame: bytes) -> bool:
        """What is no frame is lost, as on a real wire."""
        return not self._plugged or not _is_frame(frame) or self._cable.send(frame)

    # Snapshots

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot, which has no frames."""
        super().load(state)
        self._inbox.clear()
        self._outgoing = None


def _is_frame(frame: bytes) -> bool:
    return MIN_FRAME <= len(frame) <= MAX_FRAME
