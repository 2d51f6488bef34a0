# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-blk as Linux' driver meets it, and as a hostile one would have it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host.devices.fakes import Clock, Memory, QueueDriver
from veil.host import HostError
from veil.host.devices import Platform, StorageError
from veil.host.devices.platform import MAX_DISKS
from veil.host.devices.virtio.pci import DeviceStatus

SECTORS = 64
RO, FLUSH = 1 << 5, 1 << 9
FEATURES = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 32 | 1 << 33
IN, OUT, GET_ID = 0, 1, 8
OK, IOERR, UNSUPP = 0, 1, 2
HEADER, DATA, STATUS = 0x40000, 0x50000, 0x48000
WRITABLE = 2


class Disk:
    """A backend in memory, which keeps a record of what it was asked."""

    name = "disk.img"

    def __init__(self, read_only: bool = False) -> None:
        self.bytes = bytearray(b"".join(bytes((n,)) * 512 for n in range(SECTORS)))
        self.size = len(self.bytes)
        self.read_only = read_only
        self.flushes = 0
        self.fails = False
        self.loaded: Any = None

    def _check(self, offset: int, length: int) -> None:
        assert offset >= 0
        assert length > 0
        assert offset + length <= self.size
        if self.fails:
            raise StorageError("the file is on fire")

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return bytes(self.bytes[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        assert not self.read_only
        self._check(offset, len(data))
        self.bytes[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushes += 1

    def dump(self) -> dict[str, Any]:
        return {"size": self.size}

    def load(self, state: dict[str, Any]) -> None:
        if state["size"] != self.size:
            raise HostError("the disk disk.img has another size")
        self.loaded = state


class Board:
    BAR = 0xC100

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        self.memory = Memory()
        clock = Clock()
        self.platform = Platform(self.memory, now_ns=clock.now_ns, tsc=clock.tsc, disks=[self.disk])
        (self.device,) = self.platform.disks
        self.queue = QueueDriver(self.memory, 16, 0x10000)
        self.faults: list[str] = []
        self.errors: list[str] = []
        self.device.on_fault = self.faults.append
        self.device.on_error = self.errors.append

    def read(self, offset: int, size: int) -> int:
        return self.platform.io_read(self.BAR + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.platform.io_write(self.BAR + offset, size, value)

    def features(self) -> int:
        self.write(0x00, 4, 0)
        low = self.read(0x04, 4)
        self.write(0x00, 4, 1)
        return low | self.read(0x04, 4) << 32

    def start(self) -> Board:
        for half in (0, 1):
            self.write(0x08, 4, half)
            self.write(0x0C, 4, self.features() >> 32 * half & 0xFFFFFFFF)
        self.write(0x14, 1, DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK)
        self.write(0x16, 2, 0)
        self.write(0x18, 2, self.queue.size)
        for offset, address in ((0x20, self.queue.desc), (0x28, self.queue.avail), (0x30, self.queue.used)):
            self.write(offset, 4, address)
        self.write(0x1C, 2, 1)
        self.write(0x14, 1, self.read(0x14, 1) | DeviceStatus.DRIVER_OK)
        return self

    def chain(self, *buffers: tuple[int, int, bool]) -> None:
        """Offer (address, length, may the device write?) as one chain."""
        for number, (address, length, writable) in enumerate(buffers):
            last = number == len(buffers) - 1
            flags = (WRITABLE if writable else 0) | (0 if last else 1)
            self.queue.descriptor(number, address, length, flags, number + 1)
        self.queue.offer(0)
        self.write(0x3C, 2, 0)

    def request(self, kind: int, sector: int, data: bytes | int = 0) -> tuple[int, bytes]:
        """Send data, or have as many bytes filled, as one buffer; (status, what came)."""
        self.memory.bytes[HEADER : HEADER + 16] = struct.pack("<IIQ", kind, 0, sector)
        self.memory.bytes[STATUS] = 0xEE
        if isinstance(data, bytes):
            self.memory.bytes[DATA : DATA + len(data)] = data
            middle = (DATA, len(data), False)
        else:
            middle = (DATA, data, True)
        self.chain((HEADER, 16, False), *([middle] if middle[1] else []), (STATUS, 1, True))
        room = data if isinstance(data, int) else 0
        assert self.queue.used_entries() == [(0, room + 1)]
        return self.memory.bytes[STATUS], bytes(self.memory.bytes[DATA : DATA + room])


@pytest.fixture
def board() -> Board:
    return Board().start()


class TestDevice:
    def test_features(self) -> None:
        assert Board().features() == FEATURES | FLUSH
        assert Board(Disk(read_only=True)).features() == FEATURES | RO

    def test_configuration(self, board: Board) -> None:
        assert board.read(0x12, 2) == 1, "one queue"
        assert board.read(0x40, 4) | board.read(0x44, 4) << 32 == SECTORS
        size_max, seg_max = board.read(0x48, 4), board.read(0x4C, 4)
        assert size_max * seg_max + 17 <= 1 << 20, "the largest request fits into a chain"
        assert board.read(0x54, 4) == 512

    def test_linux_finds_it(self, board: Board) -> None:
        board.platform.io_write(0xCF8, 4, 0x80001000)
        assert board.platform.io_read(0xCFC, 4) == 0x10421AF4

    def test_interrupts_share_a_line(self) -> None:
        clock = Clock()
        platform = Platform(Memory(), now_ns=clock.now_ns, tsc=clock.tsc, disks=[Disk(), Disk()])
        levels: list[bool] = []
        platform.pic.set_irq = lambda irq, level: levels.append(level)  # type: ignore[method-assign]
        for disk, level in ((0, True), (1, True), (0, False), (1, False)):
            platform.disks[disk]._set_irq(level)
        assert levels == [True, True, True, False]

    def test_the_board_has_room_for_so_many(self) -> None:
        clock = Clock()
        board = Platform(Memory(), now_ns=clock.now_ns, tsc=clock.tsc, disks=[Disk() for _ in range(MAX_DISKS)])
        for number in range(MAX_DISKS):
            assert board.io_read(0xC100 + 0x80 * number + 0x12, 2) == 1
        with pytest.raises(HostError, match="too many"):
            Platform(Memory(), disks=[Disk() for _ in range(MAX_DISKS + 1)])


class TestRequests:
    def test_read(self, board: Board) -> None:
        assert board.request(IN, 3, 1024) == (OK, bytes((3,)) * 512 + bytes((4,)) * 512)
        assert board.request(IN, SECTORS - 1, 512) == (OK, bytes((SECTORS - 1,)) * 512)

    def test_write(self, board: Board) -> None:
        assert board.request(OUT, 5, b"x" * 512)[0] == OK
        assert board.disk.bytes[5 * 512 : 6 * 512] == b"x" * 512
        assert board.disk.bytes[4 * 512] == 4
        assert board.disk.bytes[6 * 512] == 6

    def test_flush_and_name(self, board: Board) -> None:
        assert board.request(4, 0)[0] == OK
        assert board.disk.flushes == 1
        assert board.request(GET_ID, 0, 20) == (OK, b"veil-0".ljust(20, b"\0"))

    @pytest.mark.parametrize(
        ("kind", "sector", "data"),
        [
            (IN, SECTORS, 512), (IN, SECTORS - 1, 1024), (IN, (1 << 64) - 1, 512), (IN, 1 << 55, 512), (IN, 0, 100),
            (IN, 0, 0), (OUT, SECTORS, bytes(512)), (OUT, (1 << 64) - 1, bytes(512)), (OUT, 0, bytes(513)),
            (OUT, 0, b""),
        ],
    )  # fmt: skip
    def test_what_is_not_on_the_disk(self, board: Board, kind: int, sector: int, data: bytes | int) -> None:
        before = bytes(board.disk.bytes)
        status, came = board.request(kind, sector, data)
        assert status == IOERR
        assert not any(came)
        assert board.disk.bytes == before
        assert board.faults == []

    def test_read_only(self) -> None:
        board = Board(Disk(read_only=True)).start()
        assert board.request(OUT, 0, bytes(512))[0] == IOERR
        assert board.request(IN, 1, 512)[0] == OK

    @pytest.mark.parametrize(("kind", "room"), [(2, 0), (11, 0), (13, 0), (0xFFFFFFFF, 512), (GET_ID, 19)])
    def test_unknown_requests(self, board: Board, kind: int, room: int) -> None:
        assert board.request(kind, 0, room)[0] == UNSUPP

    def test_a_file_that_fails_is_an_io_error(self, board: Board) -> None:
        board.disk.fails = True
        assert board.request(IN, 0, 512) == (IOERR, bytes(512))
        assert board.errors == ["the file is on fire"]
        board.disk.fails = False
        assert board.request(IN, 1, 512)[0] == OK

    def test_a_driver_may_cut_a_request_as_it_likes(self, board: Board) -> None:
        board.memory.bytes[HEADER : HEADER + 16] = struct.pack("<IIQ", IN, 0, 7)
        board.chain((HEADER, 3, False), (HEADER + 3, 13, False), (DATA, 500, True), (DATA + 500, 13, True))
        assert board.memory.bytes[DATA : DATA + 513] == bytes((7,)) * 512 + bytes((OK,))

    def test_private_pages_are_not_written(self, board: Board) -> None:
        board.memory.private.add(DATA >> 12)
        board.memory.bytes[HEADER : HEADER + 16] = struct.pack("<IIQ", IN, 0, 7)
        board.chain((HEADER, 16, False), (DATA, 512, True), (STATUS, 1, True))
        assert "the page is the guest's" in board.faults[0]
        assert not any(board.memory.bytes[DATA : DATA + 512])

    def test_devices_reach_no_more_than_the_kernels_requests(self, board: Board) -> None:
        board.platform.confine(lambda gpa, length: gpa + length <= DATA)
        board.memory.bytes[HEADER : HEADER + 16] = struct.pack("<IIQ", OUT, 0, 7)
        board.chain((HEADER, 16, False), (DATA, 512, False), (STATUS, 1, True))
        assert "a more privileged level's memory" in board.faults[0]
        assert board.disk.bytes[7 * 512] == 7


class TestHostileQueues:
    def test_a_disk_that_fills_its_own_queue(self) -> None:
        """Each sector that is read lies over the request's header and the queue's index: it asks for the next one."""
        board = Board().start()
        header = board.queue.avail + 0x100
        for sector in range(SECTORS):
            start = sector * 512
            # From the queue's flags on; every entry of its ring names the same chain.
            struct.pack_into("<HH", board.disk.bytes, start, 0, sector + 2)
            board.disk.bytes[start + 4 : start + 0x100] = bytes(0xFC)
            struct.pack_into("<IIQ", board.disk.bytes, start + 0x100, IN, 0, sector + 1)
        board.memory.bytes[header : header + 16] = struct.pack("<IIQ", IN, 0, 0)
        board.chain((header, 16, False), (board.queue.avail, 512, True), (STATUS, 1, True))
        assert board.queue.used_entries() == [(0, 513)]
        # It asks for more, and gets one answer for each time that it tells of it.
        board.write(0x3C, 2, 0)
        assert board.queue.used_entries() == [(0, 513)]
        assert board.faults == []

    @pytest.mark.parametrize(
        ("buffers", "words"),
        [
            ([(HEADER, 16, False)], "without room for its status"),
            ([(HEADER, 15, False), (STATUS, 1, True)], "15 bytes; its header has 16"),
            ([(STATUS, 1, True)], "0 bytes; its header has 16"),
            ([(HEADER, 16, False), (DATA, 1 << 25, True)], "too much"),
            ([(HEADER, 16, False), (DATA, 0xFFFFFFFF, True), (STATUS, 1, True)], "too much"),
            ([(STATUS, 1, True), (HEADER, 16, False)], "a buffer to read behind one to write"),
            ([((1 << 64) - 8, 16, False), (STATUS, 1, True)], "too much"),
        ],
    )
    def test_chains_that_are_no_request(self, board: Board, buffers: list[tuple[int, int, bool]], words: str) -> None:
        before = bytes(board.disk.bytes)
        board.chain(*buffers)
        assert words in board.faults[0]
        assert board.read(0x14, 1) & DeviceStatus.NEEDS_RESET
        assert board.disk.bytes == before
        board.write(0x14, 1, 0)
        board.queue = QueueDriver(board.memory, 16, 0x10000)
        board.memory.bytes[:] = bytes(len(board.memory.bytes))
        assert board.start().request(IN, 1, 512)[0] == OK, "after a reset it goes on"

    def test_a_loop(self, board: Board) -> None:
        board.queue.descriptor(0, HEADER, 16, 1, 1)
        board.queue.descriptor(1, DATA, 512, 1, 0)
        board.queue.offer(0)
        board.write(0x3C, 2, 0)
        assert "a chain without end" in board.faults[0]

    def test_more_chains_than_the_queue_has(self, board: Board) -> None:
        board.queue.put(board.queue.avail + 2, "H", 0x8000)
        board.write(0x3C, 2, 0)
        assert "chains are available in a queue of 16" in board.faults[0]

    def test_indices_wrap_around(self, board: Board) -> None:
        queue, driver = board.device.queues[0], board.queue
        # As if so many requests had been made and taken.
        queue._next_avail = queue._next_used = driver._avail_index = driver._used_seen = 0xFFFD
        driver.put(driver.avail + 2, "H", 0xFFFD)
        driver.put(driver.used + 2, "H", 0xFFFD)
        for sector in range(6):
            assert board.request(IN, sector, 512) == (OK, bytes((sector,)) * 512)
        assert queue._next_avail == queue._next_used == 3

    @settings(max_examples=100)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([HEADER, DATA, STATUS, 0x10000, 0x11000, 0x12000, 0xFFF00, 1 << 40, (1 << 64) - 1]),
                st.sampled_from([0, 1, 15, 16, 17, 512, 4096, 1 << 20, 0xFFFFFFFF]),
                st.integers(0, 15),
                st.integers(0, 20),
            ),
            max_size=16,
        ),
        st.lists(st.integers(0, 20), max_size=20),
        st.integers(0, 0xFFFF),
        st.tuples(st.sampled_from([IN, OUT, 4, GET_ID, 7]), st.integers(0, (1 << 64) - 1)),
        st.booleans(),
    )
    def test_no_ring_breaks_the_host(
        self,
        descriptors: list[tuple[int, int, int, int]],
        heads: list[int],
        index: int,
        header: tuple[int, int],
        read_only: bool,
    ) -> None:
        """The disk's assertions say that nothing beyond it is asked for; the memory refuses what is private."""
        board = Board(Disk(read_only)).start()
        board.memory.private |= {0x60, 0xFF}
        before = bytes(board.disk.bytes)
        board.memory.bytes[HEADER : HEADER + 16] = struct.pack("<IIQ", header[0], 0, header[1])
        for number, (address, length, flags, following) in enumerate(descriptors):
            board.queue.descriptor(number, address, length, flags, following)
        for number, head in enumerate(heads):
            board.queue.put(board.queue.avail + 4 + 2 * (number % 16), "H", head)
        board.queue.put(board.queue.avail + 2, "H", index if index % 3 else index % 17)
        board.write(0x3C, 2, 0)
        assert not read_only or board.disk.bytes == before
        assert board.device.live or board.faults


class TestSnapshots:
    def test_a_disk_goes_on(self, board: Board) -> None:
        board.request(OUT, 5, b"x" * 512)
        other = Board(board.disk)
        other.platform.load(board.platform.dump())
        other.memory.bytes[:] = board.memory.bytes
        other.queue.__dict__.update(board.queue.__dict__ | {"memory": other.memory})
        assert other.request(IN, 5, 512) == (OK, b"x" * 512)
        assert other.disk.loaded == {"size": SECTORS * 512}

    def test_another_disk_is_refused(self, board: Board) -> None:
        state = board.platform.dump()
        state["disk 0"]["disk"]["size"] = 1
        with pytest.raises(HostError, match=r"^the disk disk\.img has another size$"):
            Board().platform.load(state)

    def test_a_file_that_fails_is_one_line(self, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
        state = board.platform.dump()

        def fail(*_: object) -> None:
            raise StorageError("the file is on fire")

        monkeypatch.setattr(Disk, "load", fail)
        with pytest.raises(HostError, match="cannot be had again: the file is on fire"):
            Board().platform.load(state)
        monkeypatch.setattr(Disk, "dump", fail)
        with pytest.raises(HostError, match="no snapshot of the disk: the file is on fire"):
            board.platform.dump()

    def test_a_board_without_the_disk_is_refused(self, board: Board) -> None:
        clock = Clock()
        with pytest.raises(HostError, match="other PCI devices"):
            Platform(Memory(), now_ns=clock.now_ns, tsc=clock.tsc).load(board.platform.dump())
