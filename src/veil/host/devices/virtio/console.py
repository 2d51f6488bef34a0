# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-console with several ports (virtio 1.2, 5.3): port 0 is the console hvc0, the others are named byte channels.

Data to the guest waits here without bound until its driver has buffers for it; `ConsolePort.waiting` says how much,
and `on_drained` when nothing waits any more. Data from the guest is taken at once, or left in the guest's own buffers
while the port is paused.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from veil.host.devices.virtio.pci import VirtioPci
from veil.host.devices.virtio.virtqueue import QueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from veil.host.devices.virtio.virtqueue import DmaMemory

__all__ = ["ConsolePort", "ControlEvent", "VirtioConsole"]

_DEVICE_ID = 3
_CLASS = 0x078000
_F_SIZE, _F_MULTIPORT = 1, 2
_CONTROL = struct.Struct("<IHH")
_SIZE = struct.Struct("<HH")
_RECEIVE, _TRANSMIT, _CONTROL_RECEIVE, _CONTROL_TRANSMIT = 0, 1, 2, 3
#: Answers that the driver has asked for and not fetched; one that asks without end is stopped here.
_CONTROL_BACKLOG = 256


class ControlEvent(enum.IntEnum):
    """Control messages (5.3.6.2)."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class ConsolePort:
    """One port. All methods and callbacks belong to the hypervisor's thread."""

    def __init__(self, device: VirtioConsole, index: int, name: str | None) -> None:
        self.index = index
        #: None for the console
        self.name = name
        #: gets what the guest sends; without it, that is lost
        self.on_data: Callable[[bytes], None] | None = None
        #: told when the guest opens (True) or closes the port
        self.on_open: Callable[[bool], None] | None = None
        #: called when all that was written has gone to the guest
        self.on_drained: Callable[[], None] | None = None
        #: is the guest's side open?
        self.open = False
        #: has the guest's driver got the port?
        self.ready = False
        self._device = device
        self._connected = True
        self._paused = False
        self._serving = False
        self._outbox: deque[bytes] = deque()
        self._waiting = 0

    @property
    def receive_queue(self) -> int:
        """The queue of buffers for data to the guest (5.3.2)."""
        return 2 * self.index + 2 if self.index else _RECEIVE

    @property
    def waiting(self) -> int:
        """Bytes that the guest has not taken yet: who must not use memory without bound looks here."""
        return self._waiting

    def write(self, data: bytes) -> None:
        """Send to the guest; nothing is lost, whatever the guest does."""
        if data:
            self._outbox.append(bytes(data))
            self._waiting += len(data)
            self._device.flush(self)

    def discard(self) -> int:
        """Forget what waits; returns how much that was."""
        dropped, self._waiting = self._waiting, 0
        self._outbox.clear()
        return dropped

    @property
    def paused(self) -> bool:
        """Is data from the guest left in the guest?"""
        return self._paused

    def pause(self) -> None:
        """Take no more from the guest: its writers block, or are told that they would."""
        self._paused = True

    def resume(self) -> None:
        """Take what has gathered meanwhile, and go on."""
        if self._paused:
            self._paused = False
            self._device.drain(self)

    @property
    def connected(self) -> bool:
        """Is the host's side open? Unless it is, readers in the guest see the end of the stream."""
        return self._connected

    @connected.setter
    def connected(self, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            self._device.announce(self)


class VirtioConsole(VirtioPci):
    """Port i has receive and transmit queues 0 and 1 for port 0, 2 + 2i and 3 + 2i for the others."""

    def __init__(
        self,
        memory: DmaMemory,
        send_message: Callable[[int, int], None],
        set_irq: Callable[[bool], None],
        names: Sequence[str | None],
        *,
        io_address: int,
        mmio_address: int,
        irq: int,
        size: tuple[int, int] = (80, 25),
    ) -> None:
        """`names` are the ports'; the console's is None. `size` is (columns, rows)."""
        self.ports = [ConsolePort(self, index, name) for index, name in enumerate(names)]
        self.size = size
        self._control: deque[bytes] = deque()
        super().__init__(
            memory,
            send_message,
            set_irq,
            device_id=_DEVICE_ID,
            class_code=_CLASS,
            queues=2 * len(names) + 2,
            features=_F_SIZE | _F_MULTIPORT,
            io_address=io_address,
            mmio_address=mmio_address,
            irq=irq,
        )

    # What ports do

    def flush(self, port: ConsolePort) -> None:
        """Move what waits for a port into the guest's buffers."""
        if self.live and port.open and self.queues[port.receive_queue].enabled:
            self.guarded(lambda: self._flush(port))

    def drain(self, port: ConsolePort) -> None:
        """Take what the guest has sent to a port."""
        if self.live and self.queues[port.receive_queue + 1].enabled:
            self.guarded(lambda: self._drain(port))

    def announce(self, port: ConsolePort) -> None:
        """Tell the guest whether the host's side of a port is open."""
        if self.live and port.ready:
            self.guarded(lambda: self._say(port.index, ControlEvent.PORT_OPEN, int(port.connected)))

    def resize(self, columns: int, rows: int) -> None:
        """The console's window changed."""
        self.size = (columns, rows)
        if not self.live:
            return
        # Columns, then rows (5.3.6.2). Linux read them the other way round until 2025; Debian's kernels are fixed.
        for port in self.ports:
            if port.name is None and port.ready:
                message = _SIZE.pack(columns, rows)
                self.guarded(lambda index=port.index, extra=message: self._say(index, ControlEvent.RESIZE, 0, extra))  # type: ignore[misc]
        self.config_changed()

    # Queues

    def device_config(self) -> bytes:
        """Columns, rows, the number of ports, and a place for emergency writes, which are not offered."""
        return struct.pack("<HHII", *self.size, len(self.ports), 0)

    def device_reset(self) -> None:
        """Ports close; what waits for the guest waits for its next driver."""
        self._control.clear()
        for port in self.ports:
            port.ready = False
            self._opened(port, False)

    def serve(self, index: int) -> None:
        """One queue."""
        if index == _CONTROL_RECEIVE:
            self._send_control()
        elif index == _CONTROL_TRANSMIT:
            self._receive_control()
        else:
            port = self.ports[0 if index < 2 else index // 2 - 1]
            if index & 1:
                self._drain(port)
            else:
                self._flush(port)

    def _drain(self, port: ConsolePort) -> None:
        index = port.receive_queue + 1
        queue = self.queues[index]
        # A callback that resumes the port must not start this again from within itself.
        if port._serving or port._paused:
            return
        port._serving = True
        moved = False
        try:
            for chain in queue.waiting():
                data = queue.read_chain(chain)
                queue.push(chain, 0)
                moved = True
                if data and port.on_data is not None:
                    port.on_data(data)
                if not self.live:
                    return
                if port._paused:
                    break
        finally:
            port._serving = False
        if moved:
            self.interrupt(index)

    def _flush(self, port: ConsolePort) -> None:
        index = port.receive_queue
        queue = self.queues[index]
        outbox = port._outbox
        moved = False
        while outbox and port.open:
            chain = queue.pop_or_ask()
            if chain is None:
                break
            room = chain.room
            if not room:
                raise QueueError("a receive buffer without room")
            data = self._gather(outbox, room)
            try:
                done = queue.write_chain(chain, data)
                queue.push(chain, done)
            except QueueError:
                outbox.appendleft(data)
                raise
            port._waiting -= done
            moved = True
        if moved:
            self.interrupt(index)
        if not outbox:
            queue.set_quiet(True)
            if moved and port.on_drained is not None:
                port.on_drained()

    @staticmethod
    def _gather(outbox: deque[bytes], room: int) -> bytes:
        """At most `room` bytes from the front: small writes go together, large ones are cut."""
        parts = []
        while outbox and room:
            part = outbox.popleft()
            if len(part) > room:
                outbox.appendleft(part[room:])
                part = part[:room]
            parts.append(part)
            room -= len(part)
        return b"".join(parts)

    # The control queues

    def _say(self, port: int, event: ControlEvent, value: int, extra: bytes = b"") -> None:
        if len(self._control) >= _CONTROL_BACKLOG:
            raise QueueError("the driver asks and does not fetch the answers")
        self._control.append(_CONTROL.pack(port, event, value) + extra)
        self._send_control()

    def _send_control(self) -> None:
        queue = self.queues[_CONTROL_RECEIVE]
        moved = False
        while self._control:
            chain = queue.pop()
            if chain is None:
                break
            message = self._control[0]
            if chain.room < len(message):
                raise QueueError(f"a buffer of {chain.room} bytes for a control message of {len(message)}")
            queue.push(chain, queue.write_chain(chain, message))
            self._control.popleft()
            moved = True
        if moved:
            self.interrupt(_CONTROL_RECEIVE)

    def _receive_control(self) -> None:
        queue = self.queues[_CONTROL_TRANSMIT]
        moved = False
        for chain in queue.waiting():
            message = queue.read_chain(chain)
            queue.push(chain, 0)
            moved = True
            if len(message) >= _CONTROL.size:
                self._hear(*_CONTROL.unpack_from(message))
            if not self.live:
                return
        if moved:
            self.interrupt(_CONTROL_TRANSMIT)

    def _hear(self, number: int, event: int, value: int) -> None:
        if event == ControlEvent.DEVICE_READY:
            if value == 1:
                for port in self.ports:
                    self._say(port.index, ControlEvent.PORT_ADD, 1)
            return
        if number >= len(self.ports):
            return
        port = self.ports[number]
        if event == ControlEvent.PORT_READY and value == 1:
            port.ready = True
            if port.name is None:
                self._say(number, ControlEvent.CONSOLE_PORT, 1)
                self._say(number, ControlEvent.RESIZE, 0, _SIZE.pack(*self.size))
            else:
                self._say(number, ControlEvent.PORT_NAME, 1, port.name.encode())
            if port.connected:
                self._say(number, ControlEvent.PORT_OPEN, 1)
        elif event == ControlEvent.PORT_OPEN:
            self._opened(port, bool(value))

    def _opened(self, port: ConsolePort, is_open: bool) -> None:
        if port.open == is_open:
            return
        port.open = is_open
        if port.on_open is not None:
            port.on_open(is_open)
        if port.open:
            self.flush(port)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot; what waits for the guest is part of it."""
        ports = [
            {
                "open": port.open,
                "ready": port.ready,
                "connected": port._connected,
                "paused": port._paused,
                "outbox": b"".join(port._outbox),
            }
            for port in self.ports
        ]
        return super().dump() | {"ports": ports, "control": list(self._control), "size": list(self.size)}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot; no callback is told."""
        columns, rows = state["size"]
        control = deque(bytes(message) for message in state["control"])
        super().load(state)
        for port, saved in zip(self.ports, state["ports"], strict=True):
            port.open, port.ready = bool(saved["open"]), bool(saved["ready"])
            port._connected, port._paused = bool(saved["connected"]), bool(saved["paused"])
            outbox = bytes(saved["outbox"])
            port._outbox = deque([outbox] if outbox else [])
            port._waiting = len(outbox)
        self.size = (columns, rows)
        self._control = control
