# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-console as Linux' driver meets it, and as a hostile one would have it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.host.devices.fakes import PAGE, Clock, ConsoleDriver, Memory
from veil.host.devices import ConsolePort, Platform
from veil.host.devices.virtio.pci import DeviceStatus

FEATURES = 1 << 0 | 1 << 1 | 1 << 32 | 1 << 33
ADD, READY, CONSOLE, RESIZE, OPEN, NAME = 1, 3, 4, 5, 6, 7


def message(port: int, event: int, value: int, extra: bytes = b"") -> bytes:
    return struct.pack("<IHH", port, event, value) + extra


class Board:
    def __init__(self) -> None:
        self.memory = Memory()
        self.clock = Clock()
        self.platform = Platform(self.memory, now_ns=self.clock.now_ns, tsc=self.clock.tsc)
        self.device = self.platform.console
        self.driver = ConsoleDriver(self.platform, self.memory)
        self.agent: ConsolePort = self.platform.agent
        self.data: list[bytes] = []
        self.events: list[object] = []
        self.faults: list[str] = []
        self.agent.on_data = self.data.append
        self.agent.on_open = self.events.append
        self.device.on_fault = self.faults.append


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def opened() -> Board:
    board = Board()
    board.driver.open_ports()
    board.events.clear()
    return board


class TestNegotiation:
    def test_features(self, board: Board) -> None:
        assert board.driver.features() == FEATURES
        assert board.driver.accept(FEATURES)

    @pytest.mark.parametrize("features", [0, FEATURES & ~(1 << 32), FEATURES & ~(1 << 33), FEATURES | 1 << 28])
    def test_refused_features(self, board: Board, features: int) -> None:
        """A driver that thinks it may give any memory away, or wants what is not offered, gets no device."""
        assert not board.driver.accept(features)
        board.driver.write(0x14, 1, 0x0F)
        assert not board.driver.read(0x14, 1) & DeviceStatus.DRIVER_OK

    def test_features_are_fixed_once_agreed(self, board: Board) -> None:
        board.driver.accept(FEATURES)
        board.driver.write(0x0C, 4, 0xFFFFFFFF)
        assert board.device.driver_features == FEATURES

    def test_configuration(self, board: Board) -> None:
        assert board.driver.read(0x12, 2) == 6
        assert board.driver.read(0x44, 4) == 2, "ports"
        assert (board.driver.read(0x40, 2), board.driver.read(0x42, 2)) == (80, 25)
        assert board.driver.read(0x4C, 4) == 0

    def test_queues_are_fixed_once_enabled(self, board: Board) -> None:
        board.driver.start()
        board.driver.write(0x16, 2, 4)
        before = board.device.queues[4].dump()
        for offset, size in ((0x18, 2), (0x1C, 2), (0x20, 4), (0x2C, 4), (0x34, 4)):
            board.driver.write(offset, size, 0)
        assert board.device.queues[4].dump() == before

    def test_registers_read_back(self, board: Board) -> None:
        driver = board.driver
        driver.accept(FEATURES)
        driver.setup_queues()
        driver.write(0x16, 2, 3)
        queue = driver.queues[3]
        assert driver.read(0x18, 2) == 8
        assert driver.read(0x1A, 2) == 4
        assert driver.read(0x1C, 2) == 1
        assert driver.read(0x1E, 2) == 0
        assert driver.read(0x20, 4) | driver.read(0x24, 4) << 32 == queue.desc
        assert driver.read(0x28, 4) | driver.read(0x2C, 4) << 32 == queue.avail
        assert driver.read(0x30, 4) | driver.read(0x34, 4) << 32 == queue.used
        driver.write(0x16, 2, 6)
        assert driver.read(0x18, 2) == 0, "no such queue"
        driver.write(0x1A, 2, 1)
        assert driver.read(0x1A, 2) == 0xFFFF
        driver.write(0x16, 2, 0)
        driver.write(0x1A, 2, 7)
        assert driver.read(0x1A, 2) == 0xFFFF, "no such message"

    def test_reset(self, opened: Board) -> None:
        opened.driver.write(0x14, 1, 0)
        assert opened.driver.read(0x14, 1) == 0
        assert opened.events == [False]
        assert not any(queue.enabled for queue in opened.device.queues)
        opened.agent.write(b"for the next driver")
        assert opened.agent.waiting == 19
        opened.driver.__init__(opened.platform, opened.memory)  # type: ignore[misc]
        opened.memory.bytes[:] = bytes(len(opened.memory.bytes))
        opened.driver.open_ports()
        opened.driver.offer_room(4, 1)
        assert opened.driver.received(4) == [b"for the next driver"]

    def test_nothing_is_served_before_the_driver_is_ready(self, board: Board) -> None:
        driver = board.driver
        driver.accept(FEATURES)
        driver.setup_queues()
        driver.send(5, b"early")
        assert board.data == []
        driver.write(0x14, 1, 0x0F)
        assert board.data == [b"early"]


class TestPorts:
    def test_linux_finds_its_ports(self, board: Board) -> None:
        driver = board.driver
        driver.start()
        driver.offer_room(2, 8)
        driver.control(0xFFFFFFFF, 0, 1)
        assert driver.received(2) == [message(0, ADD, 1), message(1, ADD, 1)]
        driver.control(0, READY, 1)
        size = struct.pack("<HH", 80, 25)
        assert driver.received(2) == [message(0, CONSOLE, 1), message(0, RESIZE, 0, size), message(0, OPEN, 1)]
        driver.control(1, READY, 1)
        assert driver.received(2) == [message(1, NAME, 1, b"veil.agent"), message(1, OPEN, 1)]
        assert board.events == []
        driver.control(1, OPEN, 1)
        assert board.events == [True]
        assert board.agent.open

    def test_answers_wait_for_buffers(self, board: Board) -> None:
        driver = board.driver
        driver.start()
        driver.control(0xFFFFFFFF, 0, 1)
        assert driver.received(2) == []
        driver.offer_room(2, 1)
        assert driver.received(2) == [message(0, ADD, 1)]
        driver.offer_room(2, 1)
        assert driver.received(2) == [message(1, ADD, 1)]

    def test_guest_to_host(self, opened: Board) -> None:
        opened.driver.send(5, b"abc")
        opened.driver.send(5, b"\0\xff")
        assert opened.data == [b"abc", b"\0\xff"]
        assert len(opened.driver.queues[5].used_entries()) == 2

    def test_console_output_and_input(self, opened: Board) -> None:
        seen: list[bytes] = []
        console = opened.platform.console.ports[0]
        console.on_data = seen.append
        opened.driver.send(1, b"login: ")
        assert seen == [b"login: "]
        opened.driver.offer_room(0, 1)
        console.write(b"root\n")
        assert opened.driver.received(0) == [b"root\n"]
        assert opened.data == []

    def test_host_to_guest_waits_for_room_and_loses_nothing(self, opened: Board) -> None:
        driver, agent = opened.driver, opened.agent
        data = bytes(range(256)) * 3
        agent.write(data[:700])
        agent.write(data[700:])
        assert agent.waiting == 768
        got = b""
        while len(got) < len(data):
            driver.offer_room(4, 2)
            got += b"".join(driver.received(4))
            assert agent.waiting == len(data) - len(got)
        assert got == data

    def test_small_writes_share_a_buffer(self, opened: Board) -> None:
        for byte in b"together":
            opened.agent.write(bytes((byte,)))
        opened.driver.offer_room(4, 2)
        assert opened.driver.received(4) == [b"together"]

    def test_drained(self, opened: Board) -> None:
        drained: list[int] = []
        opened.agent.on_drained = lambda: drained.append(opened.agent.waiting)
        opened.agent.write(bytes(100))
        opened.driver.offer_room(4, 1)
        assert drained == []
        opened.driver.offer_room(4, 1)
        assert drained == [0]

    def test_nothing_goes_to_a_closed_port(self, opened: Board) -> None:
        opened.driver.offer_room(4, 2)
        opened.driver.control(1, OPEN, 0)
        assert opened.events == [False]
        opened.agent.write(b"later")
        assert opened.driver.received(4) == []
        opened.driver.control(1, OPEN, 1)
        assert opened.driver.received(4) == [b"later"]

    def test_discard(self, opened: Board) -> None:
        opened.agent.write(b"old")
        assert opened.agent.discard() == 3
        opened.agent.write(b"new")
        opened.driver.offer_room(4, 1)
        assert opened.driver.received(4) == [b"new"]

    def test_pause_leaves_data_with_the_guest(self, opened: Board) -> None:
        opened.agent.pause()
        opened.driver.send(5, b"one")
        opened.driver.send(5, b"two")
        assert opened.data == []
        assert opened.driver.queues[5].used_entries() == []
        opened.agent.resume()
        assert opened.data == [b"one", b"two"]
        assert len(opened.driver.queues[5].used_entries()) == 2

    def test_pause_and_resume_from_the_callback(self, opened: Board) -> None:
        def one_at_a_time(data: bytes) -> None:
            opened.data.append(data)
            opened.agent.pause()
            opened.agent.resume()

        opened.agent.on_data = one_at_a_time
        for number in range(4):
            opened.driver.queues[5].send(opened.driver.buffer(), bytes((number,)))
        opened.driver.notify(5)
        assert opened.data == [b"\0", b"\1", b"\2", b"\3"]

    def test_answer_from_the_callback(self, opened: Board) -> None:
        opened.driver.offer_room(4, 1)
        opened.agent.on_data = opened.agent.write
        opened.driver.send(5, b"echo")
        assert opened.driver.received(4) == [b"echo"]

    def test_the_hosts_side_opens_and_closes(self, opened: Board) -> None:
        opened.driver.offer_room(2, 2)
        opened.agent.connected = False
        opened.agent.connected = False
        opened.agent.connected = True
        assert opened.driver.received(2) == [message(1, OPEN, 0), message(1, OPEN, 1)]

    def test_resize(self, opened: Board) -> None:
        opened.driver.offer_room(2, 1)
        generation = opened.driver.read(0x15, 1)
        opened.device.resize(132, 43)
        assert opened.driver.received(2) == [message(0, RESIZE, 0, struct.pack("<HH", 132, 43))]
        assert opened.driver.read(0x40, 2) == 132
        assert opened.driver.read(0x15, 1) != generation

    def test_notifications_are_asked_for_only_when_something_waits(self, opened: Board) -> None:
        """Each costs the guest an exit: a reader that returns empty buffers has nothing to say."""
        driver = opened.driver
        flags = driver.queues[4].used
        driver.offer_room(4, 2)
        assert driver.queues[4].get(flags, "H") == (1,)
        opened.agent.write(bytes(64 * 2 + 1))
        assert driver.queues[4].get(flags, "H") == (0,)
        driver.offer_room(4, 1)
        assert driver.queues[4].get(flags, "H") == (1,)


class TestInterrupts:
    def test_messages(self, board: Board) -> None:
        board.driver.setup_msix()
        board.driver.open_ports()
        while board.platform.pending_vector(0) is not None:
            board.platform.acknowledge(0)
            board.platform.mmio_write(0xFEE000B0, 4, 0)
        board.driver.offer_room(4, 1)
        assert board.platform.pending_vector(0) is None
        board.agent.write(b"x")
        assert board.platform.acknowledge(0) == 0x45
        board.platform.mmio_write(0xFEE000B0, 4, 0)
        board.driver.queues[4].put(board.driver.queues[4].avail, "H", 1)
        board.driver.offer_room(4, 1)
        board.agent.write(b"x")
        assert board.platform.pending_vector(0) is None, "the driver polls"

    def test_line(self, opened: Board) -> None:
        platform = opened.platform
        for port, *values in ((0xA0, 0x11), (0xA1, 0x38, 2, 1, 0), (0x20, 0x11), (0x21, 0x30, 4, 1, 0)):
            for value in values:
                platform.io_write(port, 1, value)
        platform.io_write(0x4D1, 1, 0x04)
        opened.driver.read(0x38, 1)
        assert platform.pending_vector(0) is None
        opened.driver.send(5, b"x")
        assert platform.pending_vector(0) == 0x3A
        assert opened.driver.read(0x38, 1) == 1
        assert platform.pending_vector(0) is None
        command = opened.driver.config_read(4, 2)
        opened.driver.config_write(4, 2, command | 1 << 10)
        opened.driver.send(5, b"x")
        assert platform.pending_vector(0) is None, "INTx is disabled"
        assert opened.driver.config_read(0x3C, 1) == 10


class TestHostileDriver:
    def check_broken(self, board: Board, words: str) -> None:
        assert board.driver.read(0x14, 1) & DeviceStatus.NEEDS_RESET
        assert len(board.faults) == 1
        assert words in board.faults[0]
        assert board.device.fault == board.faults[0]
        # Dead until it is reset, without more ado.
        board.agent.write(b"waits")
        board.driver.notify(5)
        assert len(board.faults) == 1
        assert board.agent.waiting >= 5
        board.driver.write(0x14, 1, 0x4F)
        assert board.driver.read(0x14, 1) & DeviceStatus.NEEDS_RESET
        board.driver.write(0x14, 1, 0)
        assert board.driver.read(0x14, 1) == 0

    def test_private_receive_buffer(self, opened: Board) -> None:
        opened.driver.offer_room(4, 1)
        page = opened.driver._buffers // PAGE
        opened.memory.private.add(page)
        opened.agent.write(b"secret?")
        self.check_broken(opened, "the guest's")
        assert opened.agent.waiting == 12, "nothing of it is lost"

    def test_bad_ring_on_notification(self, opened: Board) -> None:
        opened.driver.queues[5].offer(99)
        opened.driver.notify(5)
        self.check_broken(opened, "queue 5: descriptor 99")

    def test_bad_ring_when_the_host_writes(self, opened: Board) -> None:
        opened.driver.queues[4].offer(99)
        opened.agent.write(b"x")
        self.check_broken(opened, "descriptor 99")

    def test_bad_queue_setup(self, board: Board) -> None:
        board.driver.accept(FEATURES)
        board.driver.queues[2].desc += 1
        board.driver.setup_queues()
        self.check_broken(board, "aligned")

    def test_buffers_without_room(self, opened: Board) -> None:
        opened.agent.write(b"x")
        opened.driver.offer_room(4, 1, room=0)
        self.check_broken(opened, "without room")

    def test_control_buffers_that_are_too_small(self, opened: Board) -> None:
        opened.driver.offer_room(2, 1, room=4)
        opened.agent.connected = False
        self.check_broken(opened, "control message")

    def test_questions_without_end(self, opened: Board) -> None:
        for _ in range(200):
            if opened.faults:
                break
            opened.driver.control(1, READY, 1)
        self.check_broken(opened, "does not fetch")

    def test_control_messages_that_mean_nothing(self, opened: Board) -> None:
        opened.driver.control(7, READY, 1)
        opened.driver.control(0xFFFFFFFF, OPEN, 1)
        opened.driver.control(1, 99, 1)
        opened.driver.send(3, b"short")
        opened.driver.send(3, b"")
        assert opened.faults == []
        assert opened.agent.open

    def test_notifications_that_mean_nothing(self, opened: Board) -> None:
        for queue in (6, 99, 0xFFFF):
            opened.driver.notify(queue)
        opened.driver.write(0x3C, 4, 5)
        assert opened.faults == []

    def test_the_driver_is_told_by_an_interrupt(self, board: Board) -> None:
        board.driver.setup_msix()
        board.driver.open_ports()
        while board.platform.pending_vector(0) is not None:
            board.platform.acknowledge(0)
            board.platform.mmio_write(0xFEE000B0, 4, 0)
        board.driver.queues[5].offer(99)
        board.driver.notify(5)
        assert board.platform.acknowledge(0) == 0x40, "the configuration changed"


class TestSnapshots:
    def test_in_the_middle_of_everything(self, opened: Board) -> None:
        opened.agent.write(b"on its way")
        opened.agent.pause()
        opened.driver.send(5, b"left in the guest")
        other = Board()
        other.memory.bytes[:] = opened.memory.bytes
        other.platform.load(opened.platform.dump())
        assert other.platform.dump() == opened.platform.dump()
        assert other.events == []
        assert other.agent.waiting == 10
        driver = other.driver
        driver.queues = opened.driver.queues
        for queue in driver.queues:
            queue.memory = other.memory
        driver._buffers = opened.driver._buffers
        driver.offer_room(4, 1)
        assert driver.received(4) == [b"on its way"]
        other.agent.resume()
        assert other.data == [b"left in the guest"]


def test_rings_that_lie_over_each_other(opened: Board) -> None:
    """From a snapshot: the device's index is ahead of the driver's, so each answer offers one more."""
    queue = opened.device.queues[5]
    queue.used = queue.avail
    queue._next_used = queue._next_avail + 1
    opened.driver.send(5, b"once")
    assert opened.data == [b"once"]


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("register"), st.integers(0, 0x7F), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)
            ),
            st.tuples(st.just("memory"), st.integers(0x10000, 0x22000), st.just(2), st.integers(0, 0xFFFF)),
            st.tuples(st.just("notify"), st.integers(0, 6), st.just(2), st.just(0)),
            st.tuples(st.just("write"), st.integers(0, 300), st.just(0), st.just(0)),
        ),
        max_size=60,
    ),
    st.booleans(),
)
@settings(max_examples=examples(150), deadline=None)
def test_no_driver_breaks_the_host(steps: list[tuple[str, int, int, int]], opened: bool) -> None:
    board = Board()
    if opened:
        board.driver.open_ports()
    for kind, place, size, value in steps:
        if kind == "register":
            board.driver.write(place, size, value & (1 << 8 * size) - 1)
            assert 0 <= board.driver.read(place, size) < 1 << 8 * size
        elif kind == "memory":
            board.memory.bytes[place : place + 2] = value.to_bytes(2, "little")
        elif kind == "notify":
            board.driver.notify(place)
        else:
            board.agent.write(bytes(place))
    other = Board()
    other.platform.load(board.platform.dump())
    assert other.platform.dump() == board.platform.dump()
