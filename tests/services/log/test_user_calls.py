# SPDX-License-Identifier: GPL-2.0-or-later
"""What users get from the log when nobody lies."""

from __future__ import annotations

import struct

import pytest

from tests.monitor.harness import Bench
from tests.services.log.harness import boot, log, reader, record, records, user
from veil.formats.log import LOG_GUID, LOG_NUMBER, AuditRecord, EntryKind, KernelCall, UserCall, pack_records
from veil.formats.merkle import leaf_hash, verify_consistency, verify_inclusion
from veil.formats.status import Status
from veil.remote.channel.client import RequestFailed

OK = (Status.OK, b"")


@pytest.fixture
def bench() -> Bench:
    return boot()


def test_what_was_logged_is_fetched(bench: Bench) -> None:
    log(bench, 1, 2)
    log(bench, 3)
    found = list((reading := reader(bench)).fetch())
    assert [entry.kind for entry in found] == [EntryKind.STARTED, EntryKind.RECORDS, EntryKind.RECORDS]
    assert records(found) == [record(1), record(2), record(3)]
    assert [entry.sequence for entry in found] == [0, 1, 2]
    assert found[0].time_ns < found[1].time_ns < found[2].time_ns
    assert list(reading.fetch()) == []
    log(bench, 4)
    assert records(list(reading.fetch())) == [record(4)]


def test_more_than_one_download(bench: Bench) -> None:
    big = AuditRecord(1300, bytes(3000))
    for _ in range(18):
        assert bench.ask(LOG_NUMBER, KernelCall.INTENT, pack_records([big])) == OK
    found = list(reader(bench).fetch())
    assert sum(entry.kind == EntryKind.INTENT for entry in found) == 18


def test_proofs(bench: Bench) -> None:
    for number in range(10):
        log(bench, number)
    entries = list((reading := reader(bench)).fetch())
    head = reading.head()
    with user(bench) as client:
        for index in range(head.size):
            data = client.request(LOG_GUID, UserCall.INCLUSION, struct.pack("<QQ", index, head.size))
            path = [data[at : at + 32] for at in range(0, len(data), 32)]
            assert verify_inclusion(index, head.size, leaf_hash(entries[index].raw), path, head.root)
        old = head
        log(bench, 99)
        new = reading.head()
        data = client.request(LOG_GUID, UserCall.CONSISTENCY, struct.pack("<QQ", old.size, new.size))
        path = [data[at : at + 32] for at in range(0, len(data), 32)]
        assert verify_consistency(old.size, new.size, old.root, new.root, path)
        with pytest.raises(RequestFailed, match="no proof"):
            client.request(LOG_GUID, UserCall.INCLUSION, struct.pack("<QQ", 0, 1000))


@pytest.mark.parametrize(("call", "body"), [(9, b""), (UserCall.FETCH, b"x"), (UserCall.ACKNOWLEDGE, b"")])
def test_users_with_other_words(bench: Bench, call: int, body: bytes) -> None:
    with user(bench) as client, pytest.raises(RequestFailed):
        client.request(LOG_GUID, call, body)


def test_acknowledging_what_is_not_there(bench: Bench) -> None:
    with user(bench) as client, pytest.raises(RequestFailed, match="there are 1 entries, not 2"):
        client.request(LOG_GUID, UserCall.ACKNOWLEDGE, struct.pack("<Q", 2))
