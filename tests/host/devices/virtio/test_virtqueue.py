# SPDX-License-Identifier: GPL-2.0-or-later
"""The split virtqueue: what a correct driver may rely on, and what a hostile one cannot do."""

from __future__ import annotations

import struct
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.examples import examples
from tests.host.devices.fakes import DESC, INDIRECT, NEXT, PAGE, WRITE, Memory, QueueDriver
from veil.host.devices import QueueError, Virtqueue
from veil.host.devices.virtio.virtqueue import MAX_CHAIN_BYTES

BUFFER = 0x8000


def make(size: int = 8) -> tuple[Memory, QueueDriver, Virtqueue]:
    memory = Memory()
    driver = QueueDriver(memory, size)
    return memory, driver, driver.attach(Virtqueue(memory, 128))


class TestCorrectDriver:
    def test_nothing_before_it_is_enabled(self) -> None:
        queue = Virtqueue(Memory(), 8)
        assert queue.available() == 0
        assert queue.pop() is None

    def test_chain_in_and_out(self) -> None:
        memory, driver, queue = make()
        memory.bytes[BUFFER : BUFFER + 5] = b"hello"
        memory.bytes[BUFFER + 16 : BUFFER + 22] = b" world"
        head = driver.add([(BUFFER, 5), (BUFFER + 16, 6)])
        chain = queue.pop()
        assert chain is not None
        assert queue.read_chain(chain) == b"hello world"
        queue.push(chain, 0)
        assert driver.used_entries() == [(head, 0)]
        assert queue.pop() is None

    def test_scattered_write(self) -> None:
        memory, driver, queue = make()
        driver.add([(BUFFER, 3), (BUFFER + 0x100, 0), (BUFFER + 0x200, 10)], writable=True)
        chain = queue.pop()
        assert chain is not None
        assert chain.room == 13
        assert queue.write_chain(chain, b"abcdef") == 6
        assert memory.bytes[BUFFER : BUFFER + 4] == b"abc\0"
        assert memory.bytes[BUFFER + 0x200 : BUFFER + 0x204] == b"def\0"
        assert queue.write_chain(chain, bytes(100)) == 13

    def test_indices_wrap(self) -> None:
        _, driver, queue = make(4)
        for number in range(70_000):
            head = driver.add([(BUFFER, 1)])
            chain = queue.pop()
            assert chain is not None
            queue.push(chain, number & 1)
            if number & 1023 == 0:
                assert (head, number & 1) in driver.used_entries()
            else:
                driver._used_seen = queue._next_used

    def test_suppressed_interrupts_and_notifications(self) -> None:
        _, driver, queue = make()
        assert queue.wants_interrupt()
        driver.put(driver.avail, "H", 1)
        assert not queue.wants_interrupt()
        queue.set_quiet(True)
        assert driver.get(driver.used, "H") == (1,)
        queue.set_quiet(False)
        assert driver.get(driver.used, "H") == (0,)

    def test_state_survives(self) -> None:
        memory, driver, queue = make()
        driver.send(BUFFER, b"one")
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        driver.send(BUFFER + 16, b"two")
        other = Virtqueue(memory, 128)
        other.load(queue.dump())
        chain = other.pop()
        assert chain is not None
        assert other.read_chain(chain) == b"two"
        with pytest.raises(ValueError, match="queue of 3"):
            other.load(queue.dump() | {"size": 3})

    def test_state_of_a_queue_that_is_not_set_up_survives(self) -> None:
        memory, _, _ = make()
        queue, other = Virtqueue(memory, 128), Virtqueue(memory, 128)
        queue.size, queue.desc = 0, 0x1001
        other.load(queue.dump())
        assert (other.size, other.desc, other.enabled) == (0, 0x1001, False)


class TestHostileDriver:
    @pytest.mark.parametrize(
        ("size", "desc", "avail", "used"),
        [
            (0, 0x1000, 0x2000, 0x3000),
            (3, 0x1000, 0x2000, 0x3000),
            (256, 0x1000, 0x2000, 0x3000),
            (8, 0x1008, 0x2000, 0x3000),
            (8, 0x1000, 0x2001, 0x3000),
            (8, 0x1000, 0x2000, 0x3002),
            (8, (1 << 64) - 16, 0x2000, 0x3000),
        ],
    )
    def test_setup(self, size: int, desc: int, avail: int, used: int) -> None:
        queue = Virtqueue(Memory(), 128)
        queue.size, queue.desc, queue.avail, queue.used = size, desc, avail, used
        with pytest.raises(QueueError):
            queue.enable()
        assert not queue.enabled

    def broken(self, driver: QueueDriver, queue: Virtqueue, match: str) -> None:
        with pytest.raises(QueueError, match=match):
            queue.pop()

    def test_more_available_than_the_queue_holds(self) -> None:
        _, driver, queue = make()
        driver.put(driver.avail + 2, "H", 9)
        self.broken(driver, queue, "9 chains")

    def test_head_out_of_range(self) -> None:
        _, driver, queue = make()
        driver.offer(8)
        self.broken(driver, queue, "descriptor 8")

    def test_next_out_of_range(self) -> None:
        _, driver, queue = make()
        driver.descriptor(0, BUFFER, 4, NEXT, 0xFFFF)
        driver.offer(0)
        self.broken(driver, queue, "descriptor 65535")

    def test_loop(self) -> None:
        _, driver, queue = make()
        driver.descriptor(0, BUFFER, 4, NEXT, 1)
        driver.descriptor(1, BUFFER, 4, NEXT, 0)
        driver.offer(0)
        self.broken(driver, queue, "without end")

    def test_indirect(self) -> None:
        _, driver, queue = make()
        driver.descriptor(0, BUFFER, 16, INDIRECT)
        driver.offer(0)
        self.broken(driver, queue, "indirect")

    def test_readable_behind_writable(self) -> None:
        _, driver, queue = make()
        driver.descriptor(0, BUFFER, 4, WRITE | NEXT, 1)
        driver.descriptor(1, BUFFER, 4)
        driver.offer(0)
        self.broken(driver, queue, "behind")

    @pytest.mark.parametrize(
        ("address", "length"), [(BUFFER, MAX_CHAIN_BYTES + 1), (BUFFER, 0xFFFFFFFF), ((1 << 64) - 4, 8)]
    )
    def test_too_much(self, address: int, length: int) -> None:
        _, driver, queue = make()
        driver.add([(address, length)])
        self.broken(driver, queue, "too much")

    def test_too_much_in_pieces(self) -> None:
        """Many descriptors for one buffer must not multiply what the host has to hold."""
        _, driver, queue = make()
        driver.add([(0, MAX_CHAIN_BYTES // 4)] * 5)
        self.broken(driver, queue, "too much")

    def test_buffer_outside_memory(self) -> None:
        memory, driver, queue = make()
        driver.add([(len(memory.bytes) - 2, 4)])
        chain = queue.pop()
        assert chain is not None
        with pytest.raises(QueueError, match="outside"):
            queue.read_chain(chain)

    def test_private_buffer_is_not_written(self) -> None:
        memory, driver, queue = make()
        memory.private.add(BUFFER // PAGE)
        driver.add([(BUFFER, 64)], writable=True)
        chain = queue.pop()
        assert chain is not None
        with pytest.raises(QueueError, match="the guest's"):
            queue.write_chain(chain, b"data")
        assert not any(memory.bytes[BUFFER : BUFFER + 64])

    def test_private_used_ring(self) -> None:
        memory, driver, queue = make()
        memory.private.add(driver.used // PAGE)
        driver.send(BUFFER, b"x")
        chain = queue.pop()
        assert chain is not None
        with pytest.raises(QueueError):
            queue.push(chain, 0)

    @pytest.mark.parametrize("ring", ["desc", "avail"])
    def test_ring_outside_memory(self, ring: str) -> None:
        memory, driver, _ = make()
        driver.send(BUFFER, b"x")
        queue = Virtqueue(memory, 128)
        queue.size, queue.desc, queue.avail, queue.used = 8, driver.desc, driver.avail, driver.used
        setattr(queue, ring, 1 << 40)
        queue.enable()
        with pytest.raises(QueueError, match="outside"):
            queue.pop()


raw_descriptor = st.tuples(
    st.one_of(st.integers(0, 1 << 20), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 100), st.integers(0, 0xFFFFFFFF)),
    st.integers(0, 7),
    st.integers(0, 9),
)


@given(
    descriptors=st.lists(raw_descriptor, min_size=8, max_size=8),
    ring=st.lists(st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)), min_size=8, max_size=8),
    index=st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)),
    private=st.sets(st.integers(0, 12)),
)
@settings(max_examples=examples(300), deadline=None)
def test_arbitrary_rings(
    descriptors: list[tuple[int, int, int, int]], ring: list[int], index: int, private: set[int]
) -> None:
    """Whatever is in the rings: chains within the rules, or QueueError; and an end."""
    memory, driver, queue = make()
    memory.private = private
    for number, (address, length, flags, following) in enumerate(descriptors):
        driver.descriptor(number, address, length, flags, following)
    driver.put(driver.avail + 4, "8H", *ring)
    driver.put(driver.avail + 2, "H", index)
    before = {page: bytes(memory.bytes[page * PAGE : (page + 1) * PAGE]) for page in private}
    rounds = 0
    try:
        while (chain := queue.pop()) is not None:
            rounds += 1
            assert chain.head < 8
            assert len(chain.readable) + len(chain.writable) <= 8
            assert chain.room + sum(length for _, length in chain.readable) <= MAX_CHAIN_BYTES
            queue.read_chain(chain)
            done = queue.write_chain(chain, b"Z" * 50)
            assert done == min(50, chain.room)
            queue.push(chain, done)
            if rounds > 100:
                # What was written may have offered more chains; a driver does that too. Each costs it one.
                break
    except QueueError:
        pass
    for page, content in before.items():
        assert memory.bytes[page * PAGE : (page + 1) * PAGE] == content


class QueueMachine(RuleBasedStateMachine):
    """A correct driver and a device that takes, holds and returns chains in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.driver, self.queue = make(8)
        self.free = list(range(8))
        self.offered: deque[tuple[int, bytes]] = deque()
        self.held: list[tuple[int, object]] = []
        self.returned: list[tuple[int, int]] = []
        self.in_flight: set[int] = set()

    @precondition(lambda self: bool(self.free))
    @rule(data=st.binary(min_size=1, max_size=20))
    def offer(self, data: bytes) -> None:
        head = self.free.pop()
        address = BUFFER + 64 * head
        self.memory.bytes[address : address + len(data)] = data
        self.driver.descriptor(head, address, len(data))
        self.driver.offer(head)
        self.offered.append((head, data))
        self.in_flight.add(head)

    @rule()
    def take(self) -> None:
        chain = self.queue.pop()
        if not self.offered:
            assert chain is None
            return
        head, data = self.offered.popleft()
        assert chain is not None
        assert chain.head == head
        assert self.queue.read_chain(chain) == data
        self.held.append((head, chain))

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.held) - 1))
        head, chain = self.held.pop(number)
        self.queue.push(chain, number)  # type: ignore[arg-type]
        assert self.driver.used_entries() == [(head, number)]
        self.free.append(head)
        self.in_flight.remove(head)

    @rule()
    def snapshot(self) -> None:
        other = Virtqueue(self.memory, 128)
        other.load(self.queue.dump())
        self.queue = other

    @invariant()
    def counts(self) -> None:
        assert self.queue.available() == len(self.offered)
        assert self.in_flight | set(self.free) == set(range(8))


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


def test_layout_of_the_used_ring() -> None:
    """Entry first, index second: a driver on another processor must never see an entry that is not there."""
    memory, driver, queue = make()
    writes: list[int] = []
    write = memory.write

    def spy(gpa: int, data: bytes) -> None:
        writes.append(gpa)
        write(gpa, data)

    memory.write = spy  # type: ignore[method-assign]
    driver.send(BUFFER, b"x")
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 7)
    assert writes == [driver.used + 4, driver.used + 2]
    assert struct.unpack_from("<II", memory.bytes, driver.used + 4) == (0, 7)
    assert driver.desc == DESC
