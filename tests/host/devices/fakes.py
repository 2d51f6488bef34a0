# SPDX-License-Identifier: GPL-2.0-or-later
"""Time that stands still, guest memory with private pages, and a driver for virtqueues."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from veil.host.devices import Platform, Virtqueue
from veil.host.devices.virtio.pci import DeviceStatus
from veil.snp.errors import RmpViolation

PAGE = 4096
DESC, AVAIL, USED = 0x1000, 0x2000, 0x3000
NEXT, WRITE, INDIRECT = 1, 2, 4


class Clock:
    """Monotonic nanoseconds, a TSC at 2 GHz with a start of its own, and a wall clock."""

    def __init__(self) -> None:
        self.time = 1_000_000_000
        self.tsc_khz = 2_000_000
        self.wall = 1_700_000_000 * 10**9

    def now_ns(self) -> int:
        return self.time

    def tsc(self) -> int:
        return self.time * 2 + 12345

    def wall_ns(self) -> int:
        return self.wall

    def advance(self, nanoseconds: int) -> None:
        self.time += nanoseconds
        self.wall += nanoseconds


class Memory:
    """The host's view of 1 MiB of guest memory."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.bytes = bytearray(size)
        self.private: set[int] = set()

    def _check(self, gpa: int, length: int, access: str) -> None:
        if gpa < 0 or length < 0 or gpa + length > len(self.bytes):
            raise RmpViolation(gpa, None, access, "outside guest memory")

    def read(self, gpa: int, length: int, /) -> bytes:
        self._check(gpa, length, "read")
        return bytes(self.bytes[gpa : gpa + length])

    def write(self, gpa: int, data: bytes, /) -> None:
        self._check(gpa, len(data), "write")
        for page in range(gpa // PAGE, -(-(gpa + len(data)) // PAGE)):
            if page in self.private:
                raise RmpViolation(gpa, None, "write", "the page is the guest's")
        self.bytes[gpa : gpa + len(data)] = data


class QueueDriver:
    """The guest's side of one virtqueue."""

    def __init__(self, memory: Memory, size: int = 8, base: int = DESC) -> None:
        self.memory = memory
        self.size = size
        self.desc, self.avail, self.used = base, base + 0x1000, base + 0x2000
        self._free = 0
        self._avail_index = 0
        self._used_seen = 0

    def put(self, address: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, self.memory.bytes, address, *values)

    def get(self, address: int, form: str) -> tuple[int, ...]:
        return struct.unpack_from("<" + form, self.memory.bytes, address)

    def descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.put(self.desc + 16 * index, "QIHH", address, length, flags, following)

    def offer(self, head: int) -> None:
        self.put(self.avail + 4 + 2 * (self._avail_index % self.size), "H", head)
        self._avail_index = self._avail_index + 1 & 0xFFFF
        self.put(self.avail + 2, "H", self._avail_index)

    def add(self, buffers: Iterable[tuple[int, int]], *, writable: bool = False) -> int:
        """Offer a chain of (address, length); returns its head."""
        chain = list(buffers)
        head = self._free
        for number, (address, length) in enumerate(chain):
            last = number == len(chain) - 1
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.descriptor(self._free, address, length, flags, (self._free + 1) % self.size)
            self._free = (self._free + 1) % self.size
        self.offer(head)
        return head

    def send(self, address: int, data: bytes) -> int:
        self.memory.bytes[address : address + len(data)] = data
        return self.add([(address, len(data))])

    def used_entries(self) -> list[tuple[int, int]]:
        """What came back since the last call: (head, length)."""
        (index,) = self.get(self.used + 2, "H")
        entries = []
        while self._used_seen != index:
            head, length = self.get(self.used + 4 + 8 * (self._used_seen % self.size), "II")
            entries.append((head, length))
            self._used_seen = self._used_seen + 1 & 0xFFFF
        return entries

    def attach(self, queue: Virtqueue) -> Virtqueue:
        queue.size, queue.desc, queue.avail, queue.used = self.size, self.desc, self.avail, self.used
        queue.enable()
        return queue


class ConsoleDriver:
    """A virtio-console driver, as far as ports and interrupts go; all through I/O ports, as Linux does it."""

    BAR = 0xC000
    VECTOR = 0x40

    def __init__(self, platform: Platform, memory: Memory) -> None:
        self.platform = platform
        self.memory = memory
        self.queues = [QueueDriver(memory, 8, 0x10000 + 0x3000 * index) for index in range(6)]
        self._buffers = 0x80000

    def read(self, offset: int, size: int) -> int:
        return self.platform.io_read(self.BAR + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.platform.io_write(self.BAR + offset, size, value)

    def features(self) -> int:
        self.write(0x00, 4, 0)
        low = self.read(0x04, 4)
        self.write(0x00, 4, 1)
        return low | self.read(0x04, 4) << 32

    def accept(self, features: int) -> bool:
        self.write(0x08, 4, 0)
        self.write(0x0C, 4, features & 0xFFFFFFFF)
        self.write(0x08, 4, 1)
        self.write(0x0C, 4, features >> 32)
        self.write(0x14, 1, DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK)
        return bool(self.read(0x14, 1) & DeviceStatus.FEATURES_OK)

    def setup_queues(self) -> None:
        for index, queue in enumerate(self.queues):
            self.write(0x16, 2, index)
            self.write(0x18, 2, queue.size)
            self.write(0x1A, 2, index + 1)
            for offset, address in ((0x20, queue.desc), (0x28, queue.avail), (0x30, queue.used)):
                self.write(offset, 4, address & 0xFFFFFFFF)
                self.write(offset + 4, 4, address >> 32)
            self.write(0x1C, 2, 1)

    def setup_msix(self) -> None:
        """Message i goes to VCPU 0 as vector VECTOR + i."""
        for index in range(7):
            entry = 0xC0000000 + 16 * index
            self.platform.mmio_write(entry, 4, 0xFEE00000)
            self.platform.mmio_write(entry + 4, 4, 0)
            self.platform.mmio_write(entry + 8, 4, self.VECTOR + index)
            self.platform.mmio_write(entry + 12, 4, 0)
        self.config_write(0x40, 4, self.config_read(0x40, 4) | 1 << 31)
        self.write(0x10, 2, 0)
        self.platform.mmio_write(0xFEE000F0, 4, 0x1FF)

    def config_read(self, offset: int, size: int) -> int:
        self.platform.io_write(0xCF8, 4, 0x80000800 | offset & 0xFC)
        return self.platform.io_read(0xCFC + (offset & 3), size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.platform.io_write(0xCF8, 4, 0x80000800 | offset & 0xFC)
        self.platform.io_write(0xCFC + (offset & 3), size, value)

    def start(self) -> None:
        self.accept(self.features())
        self.setup_queues()
        self.write(0x14, 1, self.read(0x14, 1) | DeviceStatus.DRIVER_OK)

    def notify(self, queue: int) -> None:
        self.write(0x3C, 2, queue)

    def buffer(self) -> int:
        self._buffers += 0x400
        return self._buffers

    def offer_room(self, queue: int, count: int, room: int = 64) -> list[int]:
        """Buffers to be filled; returns their addresses."""
        addresses = []
        for _ in range(count):
            address = self.buffer()
            self.queues[queue].add([(address, room)], writable=True)
            addresses.append(address)
        self.notify(queue)
        return addresses

    def send(self, queue: int, data: bytes) -> None:
        self.queues[queue].send(self.buffer(), data)
        self.notify(queue)

    def control(self, port: int, event: int, value: int) -> None:
        self.send(3, struct.pack("<IHH", port, event, value))

    def received(self, queue: int) -> list[bytes]:
        """The contents of the buffers that came back."""
        driver = self.queues[queue]
        messages = []
        for head, length in driver.used_entries():
            (address,) = driver.get(driver.desc + 16 * head, "Q")
            messages.append(bytes(self.memory.bytes[address : address + length]))
        return messages

    def open_ports(self) -> None:
        """What Linux does when it finds the device, and an agent that opens its channel."""
        self.start()
        self.offer_room(2, 2)
        self.control(0xFFFFFFFF, 0, 1)
        self.received(2)
        self.offer_room(2, 3)
        self.control(0, 3, 1)
        self.offer_room(2, 2)
        self.control(1, 3, 1)
        self.control(0, 6, 1)
        self.control(1, 6, 1)
        self.received(2)
        self.queues[3].used_entries()
