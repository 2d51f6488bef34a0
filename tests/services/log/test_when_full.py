# SPDX-License-Identifier: GPL-2.0-or-later
"""A log without room: what is refused, what is dropped, what is said later."""

from __future__ import annotations

import json

import pytest

from tests.monitor.harness import Bench
from tests.services.log.harness import SMALLEST, Machine, boot, log, manifest, reader, record, records, service, user
from veil.formats.log import ENTRY_HEADER, LOG_NUMBER, EntryKind, KernelCall
from veil.formats.status import Status
from veil.remote.channel.client import RequestFailed
from veil.remote.errors import VerificationFailed
from veil.remote.log.reader import LogReader, LogState
from veil.services.log.store import LogStore

OK = (Status.OK, b"")


@pytest.fixture
def bench() -> Bench:
    return boot()


def fill(bench: Bench) -> int:
    """Until the log is full: one that never is would let this go on forever."""
    count = 0
    while log(bench, count) == OK:
        count += 1
        assert count < 5000
    return count


def test_halt_waits_for_an_owner(bench: Bench) -> None:
    count = fill(bench)
    assert log(bench, count) == (Status.FULL, b"")
    reading = reader(bench)
    assert records(list(reading.fetch())) == [record(number) for number in range(count)]
    with pytest.raises(RequestFailed, match="only an owner"):
        LogReader(user(bench, None), manifest(bench)).acknowledge()
    reading.acknowledge()
    assert log(bench, count) == OK
    assert records(list(reading.fetch())) == [record(count)]
    assert reading.head().dropped == 0


def test_drop_counts_and_says_so() -> None:
    bench = boot("drop")
    while not service(bench).writer.dropped:
        assert log(bench, 7) == OK
    for _ in range(4):
        assert log(bench, 8) == OK
    reading = reader(bench)
    found = list(reading.fetch())
    assert reading.head().dropped == 5
    reading.acknowledge()
    log(bench, 9)
    found += list(reading.fetch())
    said = [int.from_bytes(entry.body, "little") for entry in found if entry.kind == EntryKind.DROPPED]
    assert sum(said) == 5
    assert [entry.kind for entry in found[-2:]] == [EntryKind.DROPPED, EntryKind.RECORDS]
    assert records(found)[-1] == record(9)


def test_bounded_whatever_comes(bench: Bench) -> None:
    """A flood: nothing is overwritten, nothing grows."""
    first = fill(bench)
    for _ in range(2000):
        assert log(bench, 1) == (Status.FULL, b"")
    assert len(list(reader(bench).fetch())) == first + 1


def nodes(store: LogStore) -> int:
    """Hashes that are kept of the tree."""
    return sum(map(len, store._tree._levels)) // 32


@pytest.mark.parametrize("full", ["halt", "drop"])
def test_flood_of_empty_calls(full: str) -> None:
    """The most entries for the memory: what is kept beside the memory is bounded by it, too."""
    bench = boot(full)
    most = SMALLEST // 24
    for _ in range(most + 500):
        status, _ = bench.ask(LOG_NUMBER, KernelCall.RECORDS)
        assert status == (Status.OK if full == "drop" else status)
    store = service(bench).store
    assert 0 <= store.free < 64
    assert most - 10 < store.next <= most
    assert len(store._positions) == store.next
    reading = reader(bench)
    entries = list(reading.fetch())
    assert len(entries) == store.next
    assert nodes(store) < 2 * store.next
    kept = sum(entry.kind == EntryKind.RECORDS for entry in entries)
    assert reading.head().dropped == (0 if full == "halt" else most + 500 - kept)
    reading.acknowledge()
    assert nodes(store) < 20
    assert len(store._positions) == (full == "drop"), "how many were dropped"
    assert store.free >= SMALLEST - 64


def test_dropped_calls_are_told_as_soon_as_there_is_room() -> None:
    """Not with the next call: a kernel that was taken over may make none."""
    bench = boot("drop")
    while not service(bench).writer.dropped:
        log(bench, 1)
    reading = reader(bench)
    list(reading.fetch())
    reading.acknowledge()
    (entry,) = reading.fetch()
    assert (entry.kind, int.from_bytes(entry.body, "little")) == (EntryKind.DROPPED, 1)


def test_a_machine_resumed_while_its_log_was_full(bench: Bench) -> None:
    """The host chooses the moment: that it was resumed, and which of two it is, is told when there is room."""
    for _ in range(1 + SMALLEST // ENTRY_HEADER.size):
        if bench.ask(LOG_NUMBER, KernelCall.HEARTBEAT)[0] == Status.FULL:
            break
    else:
        pytest.fail("the log was not full after more heartbeats than it holds")
    start = Machine(bench)
    logs = []
    for _ in range(2):
        start.restore(bench)
        reading = reader(bench)
        entries = list(reading.fetch())
        assert reading.head().dropped == 0, "the kernel lost nothing"
        reading.acknowledge()
        entries += list(reading.fetch())
        assert [entry.kind for entry in entries[-1:]] == [EntryKind.RESUMED]
        logs.append((entries, LogState.load(json.loads(reading.state.pack()))))
    assert logs[0][0][-1].body != logs[1][0][-1].body
    with pytest.raises(VerificationFailed, match="it was forked"):
        reader(bench, logs[0][1]).head()


def test_words_without_room_come_later_and_are_bounded(bench: Bench) -> None:
    fill(bench)
    for number in range(100):
        service(bench).keep_word(7, b"word %d" % number + bytes(200))
    reading = reader(bench)
    entries = list(reading.fetch())
    before = [entry for entry in entries if entry.kind == EntryKind.WORD]
    reading.acknowledge()
    log(bench, 2)
    later = list(reading.fetch())
    after = [entry for entry in later if entry.kind == EntryKind.WORD]
    assert len(after) == 64
    dropped = [entry for entry in later if entry.kind == EntryKind.DROPPED]
    assert sum(entry.dropped for entry in dropped) == 100 - len(before) - len(after)


def test_an_urgent_word_is_not_lost_for_others_that_wait(bench: Bench) -> None:
    """Whoever fills the log, and then has modules come and go, must not have what they do next go untold."""
    fill(bench)
    for number in range(100):
        service(bench).keep_word(7, b"word %d" % number + bytes(200))
    service(bench).keep_word(7, bytes(200) + b"a violation", urgent=True)
    saved = json.loads(json.dumps(service(bench).writer.dump()))
    service(bench).writer.load(saved)
    reading = reader(bench)
    list(reading.fetch())
    reading.acknowledge()
    log(bench, 2)
    words = [entry.body for entry in reading.fetch() if entry.kind == EntryKind.WORD]
    assert words[0].endswith(b"a violation")
    assert len(words) == 65
