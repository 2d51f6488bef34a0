# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-console with several ports (virtio 1.2, section 5.3): port 0 is hvc0, the others are named channels."""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from veil.host.devices.virtio_pci import VirtioPci
from veil.host.devices.virtqueue import DmaMemory, QueueError, Virtqueue

__all__ = ["ConsolePort", "VirtioConsole"]

_DEVICE_ID = 3
_CLASS = 0x078000
_F_SIZE, _F_MULTIPORT = 1, 2
_CONTROL = struct.Struct("<IHH")
_CONTROL_RX, _CONTROL_TX = 2, 3
#: What waits for the driver's buffers; control messages are few, a driver that asks for ever is stopped here.
_CONTROL_BACKLOG = 256


class _Event(enum.IntEnum):
    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class ConsolePort:
    """One byte channel."""

    def __init__(self, device: VirtioConsole, index: int, name: str | None) -> None:
        self.index = index
        self.name = name
        #: called with what the guest sent
        self.on_data: Callable[[bytes], None] | None = None
        #: called when the guest opens (True) or closes the port
        self.on_open: Callable[[bool], None] | None = None
        #: is the guest's side open?
        self.open = False
        self._device = device
        self._outbox: deque[bytes] = deque()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Bytes that the guest has not yet taken: a sender that minds memory looks here first."""
        return self._waiting

    def write(self, data: bytes) -> None:
        """Send to the guest; what it has no buffers for waits."""
        if data:
            self._outbox.append(bytes(data))
            self._waiting += len(data)
            self._device.pump(self)


class VirtioConsole(VirtioPci):
    """Port i has receive and transmit queues 0, 1 for port 0, and 2 + 2i, 3 + 2i for the others."""

    def __init__(
        self,
        memory: DmaMemory,
        send_msi: Callable[[int, int], None],
        names: Sequence[str | None],
        *,
        size: tuple[int, int] = (80, 25),
        io_address: int = 0xC000,
        mmio_address: int = 0xC0000000,
    ) -> None:
        self.ports = [ConsolePort(self, index, name) for index, name in enumerate(names)]
        self._size = size
        self._control: deque[bytes] = deque()
        super().__init__(
            memory,
            send_msi,
            device_id=_DEVICE_ID,
            class_code=_CLASS,
            queues=2 * len(names) + 2,
            features=_F_SIZE | _F_MULTIPORT,
            io_address=io_address,
            mmio_address=mmio_address,
        )

    def _receive_queue(self, port: ConsolePort) -> Virtqueue:
        return self.queues[0 if port.index == 0 else 2 * port.index + 2]

    def device_config(self) -> bytes:
        """Columns, rows, number of ports."""
        return struct.pack("<HHII", *self._size, len(self.ports), 0)

    def device_reset(self) -> None:
        """Ports close; what was queued for the guest stays for its next driver."""
        self._control.clear()
        for port in self.ports:
            self._opened(port, False)

    def queue_notified(self, index: int) -> None:
        """Serve one queue."""
        if index == _CONTROL_RX:
            self._send_control()
        elif index == _CONTROL_TX:
            self._receive_control()
        else:
            port = self.ports[0 if index < 2 else index // 2 - 1]
            if index & 1:
                self._transmitted(port, self.queues[index])
            else:
                self._pump(port)

    def _transmitted(self, port: ConsolePort, queue: Virtqueue) -> None:
        wanted = False
        while (chain := queue.pop()) is not None:
            data = queue.read_chain(chain)
            wanted |= queue.push(chain, 0)
            if port.on_data is not None and data:
                port.on_data(data)
        if wanted:
            self.interrupt(queue)

    def pump(self, port: ConsolePort) -> None:
        """Move what waits for a port into the guest's buffers."""
        if self.live:
            self._guarded(lambda: self._pump(port))

    def _pump(self, port: ConsolePort) -> None:
        queue = self._receive_queue(port)
        outbox = port._outbox
        wanted = moved = False
        while outbox and port.open:
            chain = queue.pop()
            if chain is None:
                break
            if not chain.room:
                raise QueueError("a receive buffer without room")
            # Join small writes, so that the guest takes as few interrupts and buffers as it can.
            parts, have = [], 0
            while outbox and have < chain.room:
                part = outbox.popleft()
                parts.append(part)
                have += len(part)
            data = b"".join(parts)
            done = queue.write_chain(chain, data)
            if done < len(data):
                outbox.appendleft(data[done:])
            port._waiting -= done
            wanted |= queue.push(chain, done)
            moved = True
        if moved and wanted:
            self.interrupt(queue)

    # Control queue

    def _queue_control(self, port: int, event: _Event, value: int = 1, extra: bytes = b"") -> None:
        if len(self._control) >= _CONTROL_BACKLOG:
            raise QueueError("the driver asks and does not take the answers")
        self._control.append(_CONTROL.pack(port, event, value) + extra)

    def _send_control(self) -> None:
        queue = self.queues[_CONTROL_RX]
        wanted = moved = False
        while self._control:
            chain = queue.pop()
            if chain is None:
                break
            message = self._control.popleft()
            done = queue.write_chain(chain, message)
            wanted |= queue.push(chain, done)
            moved = True
        if moved and wanted:
            self.interrupt(queue)

    def _receive_control(self) -> None:
        queue = self.queues[_CONTROL_TX]
        wanted = False
        while (chain := queue.pop()) is not None:
            message = queue.read_chain(chain)
            wanted |= queue.push(chain, 0)
            if len(message) >= _CONTROL.size:
                self._control_message(*_CONTROL.unpack_from(message))
        if wanted:
            self.interrupt(queue)
        self._send_control()

    def _control_message(self, number: int, event: int, value: int) -> None:
        if event == _Event.DEVICE_READY:
            if value == 1:
                for port in self.ports:
                    self._queue_control(port.index, _Event.PORT_ADD)
            return
        if number >= len(self.ports):
            return
        port = self.ports[number]
        if event == _Event.PORT_READY and value == 1:
            if port.name is None:
                self._queue_control(number, _Event.CONSOLE_PORT)
                self._opened(port, True)
            else:
                self._queue_control(number, _Event.PORT_NAME, extra=port.name.encode())
            self._queue_control(number, _Event.PORT_OPEN)
        elif event == _Event.PORT_OPEN:
            self._opened(port, bool(value))

    def _opened(self, port: ConsolePort, state: bool) -> None:
        if port.open == state:
            return
        port.open = state
        if port.on_open is not None:
            port.on_open(state)
        if state:
            self.pump(port)

    # Snapshots

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            **super().state(),
            "ports": [{"open": port.open, "outbox": b"".join(port._outbox)} for port in self.ports],
            "control": list(self._control),
        }

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        super().load(state)
        for port, saved in zip(self.ports, state["ports"], strict=True):
            port.open = saved["open"]
            port._outbox = deque([saved["outbox"]] if saved["outbox"] else [])
            port._waiting = len(saved["outbox"])
        self._control = deque(state["control"])
