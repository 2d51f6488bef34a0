# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-net: frames in both directions, those that cannot be taken, and drivers that break the rules."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host.devices.fakes import Clock, Memory, QueueDriver
from veil.formats.board import DISK_IRQ, NETWORK_SLOT
from veil.formats.user_network import MAC
from veil.host.devices import Platform
from veil.host.devices.virtio.net import MAX_FRAME, MIN_FRAME, VirtioNet
from veil.host.devices.virtio.pci import DeviceStatus
from veil.host.errors import HostError

RECEIVE, TRANSMIT = 0, 1
VERSION_1, ACCESS_PLATFORM = 1 << 32, 1 << 33
FEATURES = VERSION_1 | ACCESS_PLATFORM | 1 << 5 | 1 << 16
#: of a buffer in guest memory
BUFFERS, STEP = 0x40000, 0x800
HEADER = bytes(12)
RECEIVED = bytes(10) + b"\x01\x00"
FRAME = bytes(range(60))


class Cable:
    """Takes `room` frames."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.room = 1 << 30
        self.takes = 0

    def send(self, frame: bytes) -> bool:
        assert MIN_FRAME <= len(frame) <= MAX_FRAME
        if not self.room:
            return False
        self.room -= 1
        self.frames.append(frame)
        return True

    def taken(self) -> None:
        self.takes += 1


class Board:
    """A board with a network card, and its driver."""

    BAR = 0xC500

    def __init__(self) -> None:
        self.cable = Cable()
        self.memory = Memory()
        clock = Clock()
        self.platform = Platform(self.memory, now_ns=clock.now_ns, tsc=clock.tsc, cable=self.cable)
        assert self.platform.network is not None
        self.device: VirtioNet = self.platform.network
        self.queues = [QueueDriver(self.memory, 16, base) for base in (0x10000, 0x20000)]
        self.faults: list[str] = []
        self.device.on_fault = self.faults.append

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
        for number, queue in enumerate(self.queues):
            self.write(0x16, 2, number)
            self.write(0x18, 2, queue.size)
            for offset, address in ((0x20, queue.desc), (0x28, queue.avail), (0x30, queue.used)):
                self.write(offset, 4, address)
            self.write(0x1C, 2, 1)
        self.write(0x14, 1, self.read(0x14, 1) | DeviceStatus.DRIVER_OK)
        return self

    def notify(self, index: int) -> None:
        self.write(0x3C, 2, index)

    def give_buffers(self, count: int, length: int = 1530) -> list[int]:
        """Buffers for frames; the addresses of them."""
        places = [BUFFERS + STEP * number for number in range(count)]
        for place in places:
            self.queues[RECEIVE].add([(place, length)], writable=True)
        return places

    def send(self, frame: bytes, header: bytes = HEADER) -> None:
        self.queues[TRANSMIT].send(0x80000, header + frame)
        self.notify(TRANSMIT)

    def is_asked(self) -> bool:
        """Is the driver to tell of new buffers?"""
        return self.queues[RECEIVE].get(self.queues[RECEIVE].used, "H") == (0,)

    def at(self, place: int, length: int) -> bytes:
        return bytes(self.memory.bytes[place : place + length])


@pytest.fixture
def board() -> Board:
    return Board().start()


class TestDevice:
    def test_features(self) -> None:
        assert Board().features() == FEATURES

    def test_configuration(self, board: Board) -> None:
        assert board.read(0x12, 2) == 2, "two queues"
        assert bytes(board.read(0x40 + number, 1) for number in range(6)) == MAC
        assert board.read(0x46, 2) == 1, "the link is up"

    def test_linux_finds_it(self, board: Board) -> None:
        board.platform.io_write(0xCF8, 4, 0x80000000 | NETWORK_SLOT << 11)
        assert board.platform.io_read(0xCFC, 4) == 0x10411AF4
        board.platform.io_write(0xCF8, 4, 0x80000008 | NETWORK_SLOT << 11)
        assert board.platform.io_read(0xCFC, 4) >> 8 == 0x020000, "an Ethernet controller"

    def test_it_shares_the_disks_line(self, board: Board) -> None:
        levels: list[tuple[int, bool]] = []
        board.platform.pic.set_irq = lambda irq, level: levels.append((irq, level))  # type: ignore[method-assign]
        board.give_buffers(1)
        board.device.receive([FRAME])
        board.read(0x38, 1)
        assert levels == [(DISK_IRQ, True), (DISK_IRQ, False)]

    def test_a_board_without_a_network_has_no_card(self) -> None:
        clock = Clock()
        board = Platform(Memory(), now_ns=clock.now_ns, tsc=clock.tsc)
        board.io_write(0xCF8, 4, 0x80000000 | NETWORK_SLOT << 11)
        assert board.io_read(0xCFC, 4) == 0xFFFFFFFF


class TestTransmission:
    @pytest.mark.parametrize("length", [MIN_FRAME, 60, 1514, MAX_FRAME])
    def test_frames(self, board: Board, length: int) -> None:
        frame = (FRAME * 30)[:length]
        board.send(frame)
        assert board.cable.frames == [frame]
        assert board.queues[TRANSMIT].used_entries() == [(0, 0)]

    def test_a_driver_may_cut_a_frame_as_it_likes(self, board: Board) -> None:
        board.memory.bytes[0x80000 : 0x80000 + 72] = HEADER + FRAME
        board.queues[TRANSMIT].add([(0x80000, 5), (0x80005, 20), (0x80019, 47)])
        board.notify(TRANSMIT)
        assert board.cable.frames == [FRAME]

    @pytest.mark.parametrize("data", [b"", bytes(11), HEADER, HEADER + bytes(13), HEADER + bytes(1519), bytes(60000)])
    def test_what_is_no_frame_is_lost(self, board: Board, data: bytes) -> None:
        board.send(data, b"")
        assert board.cable.frames == []
        assert board.faults == []
        board.send(FRAME)
        assert board.cable.frames == [FRAME]
        assert len(board.queues[TRANSMIT].used_entries()) == 2

    def test_a_cable_that_is_full_takes_the_rest_later(self, board: Board) -> None:
        """In order, each once; the driver keeps what is not taken."""
        board.cable.room = 2
        frames = [bytes((number,)) * 60 for number in range(6)]
        for number, frame in enumerate(frames):
            board.queues[TRANSMIT].send(0x80000 + STEP * number, HEADER + frame)
        board.notify(TRANSMIT)
        assert board.cable.frames == frames[:2]
        assert len(board.queues[TRANSMIT].used_entries()) == 3, "one is held here"
        board.notify(TRANSMIT)
        assert board.queues[TRANSMIT].used_entries() == []
        board.cable.room = 2
        board.device.resume()
        assert board.cable.frames == frames[:4]
        board.cable.room = 9
        board.device.resume()
        assert board.cable.frames == frames
        assert len(board.queues[TRANSMIT].used_entries()) == 3

    def test_when_the_other_end_is_gone_frames_are_lost(self, board: Board) -> None:
        board.cable.room = 0
        board.send(FRAME)
        board.device.unplug()
        assert board.read(0x46, 2) == 0, "the link is down"
        assert board.read(0x38, 1) & 2, "the driver is told"
        board.send(FRAME)
        assert board.cable.frames == []
        assert len(board.queues[TRANSMIT].used_entries()) == 2

    def test_the_driver_of_a_snapshot_hears_that_the_link_is_up_again(self, board: Board) -> None:
        board.device.unplug()
        board.read(0x38, 1)
        again = Board()
        again.device.announce()
        assert not again.read(0x38, 1), "there is no driver yet"
        again.device.load(board.device.dump())
        again.device.announce()
        assert again.read(0x38, 1) & 2
        assert again.read(0x46, 2) == 1


class TestReception:
    def test_frames(self, board: Board) -> None:
        places = board.give_buffers(3)
        takes = board.cable.takes
        board.device.receive([FRAME, FRAME * 20])
        assert board.queues[RECEIVE].used_entries() == [(0, 72), (1, 1212)]
        assert board.at(places[0], 73) == RECEIVED + FRAME + b"\0"
        assert board.at(places[1], 1212) == RECEIVED + FRAME * 20
        assert board.cable.takes == takes + 1
        assert board.read(0x38, 1) & 1, "the driver is told"

    @pytest.mark.parametrize("length", [0, MIN_FRAME - 1, MAX_FRAME + 1, 4096])
    def test_what_is_no_frame_is_lost(self, board: Board, length: int) -> None:
        (place,) = board.give_buffers(1, 8192)
        takes = board.cable.takes
        board.device.receive([b"x" * length])
        assert board.queues[RECEIVE].used_entries() == []
        assert board.cable.takes == takes + 1
        board.device.receive([FRAME])
        assert board.at(place, 72) == RECEIVED + FRAME

    def test_they_wait_for_buffers(self, board: Board) -> None:
        board.give_buffers(1)
        takes = board.cable.takes
        board.device.receive([FRAME, FRAME, FRAME])
        assert len(board.queues[RECEIVE].used_entries()) == 1
        assert board.cable.takes == takes, "no more is brought meanwhile"
        assert board.is_asked()
        board.give_buffers(2)
        board.notify(RECEIVE)
        assert len(board.queues[RECEIVE].used_entries()) == 2
        assert board.cable.takes == takes + 1
        assert not board.is_asked(), "each notification is an exit"

    def test_a_buffer_may_be_in_pieces(self, board: Board) -> None:
        board.queues[RECEIVE].add([(BUFFERS, 10), (BUFFERS + 10, 7), (BUFFERS + 17, 1500)], writable=True)
        board.device.receive([FRAME])
        assert board.queues[RECEIVE].used_entries() == [(0, 72)]
        assert board.at(BUFFERS, 72) == RECEIVED + FRAME

    @pytest.mark.parametrize("length", [0, 11, 12, 71])
    def test_a_buffer_that_is_too_small_comes_back_empty(self, board: Board, length: int) -> None:
        (place,) = board.give_buffers(1, length)
        board.device.receive([FRAME])
        assert board.queues[RECEIVE].used_entries() == [(0, 0)]
        assert not any(board.at(place, 80))
        assert board.faults == []
        assert board.cable.takes

    def test_without_a_driver_they_are_lost(self) -> None:
        board = Board()
        board.device.receive([FRAME])
        assert board.cable.takes == 1
        board.start()
        board.give_buffers(1)
        board.notify(RECEIVE)
        assert board.queues[RECEIVE].used_entries() == []

    def test_a_reset_loses_what_is_on_its_way(self, board: Board) -> None:
        board.cable.room = 0
        board.send(FRAME)
        board.device.receive([FRAME])
        takes = board.cable.takes
        board.write(0x14, 1, 0)
        assert board.cable.takes == takes + 1
        board.cable.room = 9
        board.device.resume()
        board.memory.bytes[:] = bytes(len(board.memory.bytes))
        board.queues = Board().queues
        for queue in board.queues:
            queue.memory = board.memory
        board.start()
        board.give_buffers(1)
        board.notify(RECEIVE)
        assert board.queues[RECEIVE].used_entries() == []
        assert board.cable.frames == []

    def test_private_pages_are_not_written(self, board: Board) -> None:
        (place,) = board.give_buffers(1)
        board.memory.private.add(place >> 12)
        board.device.receive([FRAME])
        assert "the page is the guest's" in board.faults[0]
        assert not any(board.at(place, 80))

    def test_no_further_than_the_kernels_requests(self, board: Board) -> None:
        board.platform.confine(lambda gpa, length: gpa + length <= 0x80000)
        board.send(FRAME)
        assert "a more privileged level's memory" in board.faults[0]
        assert board.cable.frames == []


class TestHostileQueues:
    def test_frames_that_lie_over_their_own_ring(self, board: Board) -> None:
        """Each frame that comes offers its own buffer again: it is used once for each frame, and no more."""
        queue = board.queues[RECEIVE]
        queue.add([(queue.avail + 2 - 12, 1530)], writable=True)
        frames = [struct.pack("<H", number + 2) + bytes(60) for number in range(8)]
        board.device.receive(frames)
        assert queue.used_entries() == [(0, 74)] * 8
        assert board.faults == []

    def test_a_ring_of_frames_that_offers_more_by_being_given_back(self, board: Board) -> None:
        """The used ring lies over the index of the available one: what is given back now offers the next chain."""
        queue = board.queues[TRANSMIT]
        board.write(0x14, 1, 0)
        queue.used = queue.avail
        board.start()
        board.memory.bytes[0x80000 : 0x80000 + 72] = HEADER + FRAME
        queue.descriptor(0, 0x80000, 72)
        queue.offer(0)
        for _ in range(4):
            before = len(board.cable.frames)
            board.notify(TRANSMIT)
            assert len(board.cable.frames) - before <= 1

    @pytest.mark.parametrize("index", [RECEIVE, TRANSMIT])
    def test_a_loop(self, board: Board, index: int) -> None:
        queue = board.queues[index]
        flags = 3 if index == RECEIVE else 1
        queue.descriptor(0, BUFFERS, 16, flags, 1)
        queue.descriptor(1, BUFFERS, 16, flags, 0)
        queue.offer(0)
        board.device.receive([FRAME])
        board.notify(index)
        assert "a chain without end" in board.faults[0]
        assert board.read(0x14, 1) & DeviceStatus.NEEDS_RESET

    @pytest.mark.parametrize("index", [RECEIVE, TRANSMIT])
    @pytest.mark.parametrize(
        ("address", "length"), [(0, 0xFFFFFFFF), (BUFFERS, (64 << 10) + 1), ((1 << 64) - 8, 16), (1 << 40, 100)]
    )
    def test_buffers_that_are_none(self, board: Board, index: int, address: int, length: int) -> None:
        board.queues[index].add([(address, length)], writable=index == RECEIVE)
        board.device.receive([FRAME])
        board.notify(index)
        assert len(board.faults) == 1
        assert board.cable.frames == []
        # Nothing more is tried until it is reset.
        board.device.receive([FRAME])
        board.device.resume()
        board.notify(index)
        assert len(board.faults) == 1

    @pytest.mark.parametrize("index", [RECEIVE, TRANSMIT])
    def test_more_chains_than_the_queue_has(self, board: Board, index: int) -> None:
        board.queues[index].put(board.queues[index].avail + 2, "H", 0x8000)
        board.device.receive([FRAME])
        board.notify(index)
        assert "chains are available in a queue of 16" in board.faults[0]

    def test_buffers_of_the_other_direction(self, board: Board) -> None:
        board.queues[RECEIVE].add([(BUFFERS, 1530)])
        board.device.receive([FRAME])
        assert board.queues[RECEIVE].used_entries() == [(0, 0)], "no room in it"
        board.queues[TRANSMIT].add([(BUFFERS, 1530)], writable=True)
        board.notify(TRANSMIT)
        assert board.queues[TRANSMIT].used_entries() == [(0, 0)], "nothing in it"
        assert board.cable.frames == []
        assert board.faults == []

    def test_indices_wrap_around(self, board: Board) -> None:
        for number, queue in enumerate(board.queues):
            device = board.device.queues[number]
            device._next_avail = device._next_used = queue._avail_index = queue._used_seen = 0xFFFD
            queue.put(queue.avail + 2, "H", 0xFFFD)
            queue.put(queue.used + 2, "H", 0xFFFD)
        for number in range(6):
            frame = bytes((number,)) * 60
            board.send(frame)
            board.queues[RECEIVE].add([(BUFFERS, 1530)], writable=True)
            board.device.receive([frame])
            assert board.at(BUFFERS + 12, 60) == frame
        assert len(board.cable.frames) == 6
        assert [queue._next_used for queue in board.device.queues] == [3, 3]

    @settings(max_examples=100)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [BUFFERS, 0x10000, 0x11000, 0x12000, 0x20000, 0x21000, 0xFFF00, 1 << 40, (1 << 64) - 1]
                ),
                st.sampled_from([0, 1, 12, 13, 72, 1530, 4096, 64 << 10, 0xFFFFFFFF]),
                st.integers(0, 15),
                st.integers(0, 20),
            ),
            max_size=16,
        ),
        st.lists(st.integers(0, 20), max_size=20),
        st.integers(0, 0xFFFF),
        st.lists(st.sampled_from(["notify 0", "notify 1", "receive", "resume", "reset", "unplug"]), max_size=8),
        st.integers(0, 3),
    )
    def test_no_ring_breaks_the_host(
        self,
        descriptors: list[tuple[int, int, int, int]],
        heads: list[int],
        index: int,
        steps: list[str],
        room: int,
    ) -> None:
        """Both queues are of the same bytes. The cable's assertion says that only frames come; the memory refuses what
        is private."""
        board = Board().start()
        board.cable.room = room
        board.memory.private |= {BUFFERS >> 12, 0xFF}
        for queue in board.queues:
            for number, (address, length, flags, following) in enumerate(descriptors):
                queue.descriptor(number, address, length, flags, following)
            for number, head in enumerate(heads):
                queue.put(queue.avail + 4 + 2 * (number % 16), "H", head)
            queue.put(queue.avail + 2, "H", index if index % 3 else index % 17)
        for step in steps:
            name, _, argument = step.partition(" ")
            if name == "notify":
                board.notify(int(argument))
            elif name == "receive":
                board.device.receive([FRAME] * 8)
            elif name == "reset":
                board.write(0x14, 1, 0)
            elif name == "resume":
                board.cable.room += 2
                board.device.resume()
            else:
                board.device.unplug()
        assert not any(board.at(BUFFERS, 4096))
        assert board.device.live or board.faults or "reset" in steps


def _again(board: Board, other: Board) -> Board:
    """Another board, from the first one's state and memory."""
    other.platform.load(board.platform.dump())
    other.memory.bytes[:] = board.memory.bytes
    for queue, old in zip(other.queues, board.queues, strict=True):
        queue.__dict__.update(old.__dict__ | {"memory": other.memory})
    return other


class TestSnapshots:
    def test_a_card_goes_on(self, board: Board) -> None:
        board.send(FRAME)
        board.give_buffers(2)
        board.device.receive([FRAME])
        other = _again(board, Board())
        other.send(FRAME[::-1])
        assert other.cable.frames == [FRAME[::-1]]
        other.device.receive([FRAME * 2])
        assert other.at(BUFFERS + STEP, 132) == RECEIVED + FRAME * 2

    def test_frames_are_not_kept(self, board: Board) -> None:
        board.cable.room = 0
        board.send(FRAME)
        board.device.receive([FRAME])
        other = _again(board, Board())
        other.device.resume()
        assert other.cable.frames == []
        other.give_buffers(1)
        other.notify(RECEIVE)
        assert other.queues[RECEIVE].used_entries() == []
        other.device.receive([FRAME])
        assert other.queues[RECEIVE].used_entries() == [(0, 72)]

    @pytest.mark.parametrize("with_card", [True, False])
    def test_a_board_with_or_without_it_is_another(self, with_card: bool) -> None:
        clock = Clock()

        def make(cables: Sequence[Cable]) -> Platform:
            return Platform(Memory(), now_ns=clock.now_ns, tsc=clock.tsc, cable=cables[0] if cables else None)

        state: dict[str, Any] = make([Cable()] if with_card else []).dump()
        with pytest.raises(HostError, match="other PCI devices"):
            make([] if with_card else [Cable()]).load(state)
