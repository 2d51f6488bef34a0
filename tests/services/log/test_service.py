# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG in its domain, with a kernel, users, and everybody's attacks."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.monitor.harness import SERVICE_MEMORY, Bench
from tests.services.log.harness import SMALLEST, Services, boot, log, lying, manifest, reader, record, records, user
from veil.formats.channel import Request, Response
from veil.formats.errors import FormatError
from veil.formats.log import (
    LOG_GUID,
    LOG_NUMBER,
    AuditRecord,
    EntryKind,
    Head,
    KernelCall,
    LogEntry,
    LogManifest,
    UserCall,
    pack_records,
    parse_records,
)
from veil.formats.merkle import leaf_hash, verify_consistency, verify_inclusion
from veil.formats.status import Status
from veil.monitor import Option, VeilMon
from veil.remote.channel.client import RequestFailed
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.log.audit_lines import audit_lines
from veil.remote.log.folder import LogFolder
from veil.remote.log.reader import LogReader, LogState
from veil.snp import RmpViolation

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


def test_manifest(bench: Bench) -> None:
    found = LogManifest.parse(manifest(bench))
    assert (found.memory, found.full) == (SMALLEST, "halt")


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


def test_kernel_with_other_words(bench: Bench) -> None:
    assert bench.ask(LOG_NUMBER, 77, b"x") == (Status.UNKNOWN_CALL, b"")
    # What is not a record is kept as it is: its reader says so.
    assert bench.ask(LOG_NUMBER, KernelCall.RECORDS, b"nonsense") == OK
    (entry,) = list(reader(bench).fetch())[1:]
    with pytest.raises(FormatError):
        parse_records(entry.body)
    assert list(audit_lines(entry)) == []


# Full


def fill(bench: Bench) -> int:
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
    while bench.services is not None and not bench.services.services[0]._dropped:  # type: ignore[attr-defined]
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


def test_acknowledging_what_is_not_there(bench: Bench) -> None:
    with user(bench) as client, pytest.raises(RequestFailed, match="there are 1 entries, not 2"):
        client.request(LOG_GUID, UserCall.ACKNOWLEDGE, struct.pack("<Q", 2))


# The kernel


def test_the_kernel_cannot_reach_the_entries(bench: Bench) -> None:
    log(bench, 1)
    for gpa in (SERVICE_MEMORY, SERVICE_MEMORY + 100):
        with pytest.raises(RmpViolation):
            bench.kernel.read(gpa, 8)
        with pytest.raises(RmpViolation):
            bench.kernel.write(gpa, bytes(8))
    assert records(list(reader(bench).fetch())) == [record(1)]

    open_to_all = boot(options=Option.UNPROTECTED)
    log(open_to_all, 1)
    where = open_to_all.memory.buf[SERVICE_MEMORY : SERVICE_MEMORY + 200].tobytes().index(b"syscall=59")
    open_to_all.kernel.write(SERVICE_MEMORY + where, b"syscall=00")
    # Entries are hashed when they come: that it was changed is noticed, what it said is lost.
    assert open_to_all.kernel.read(SERVICE_MEMORY + where, 10) == b"syscall=00"
    with pytest.raises(VerificationFailed, match="at least one was changed"):
        list(reader(open_to_all).fetch())


# The host restores, users remember


def test_an_older_state_of_the_machine_is_noticed(bench: Bench) -> None:
    log(bench, 1)
    assert bench.services is not None
    old = bench.services.save()
    log(bench, 2)
    log(bench, 3)
    known = (reading := reader(bench)).state
    list(reading.fetch())
    known = LogState.load(json.loads(reading.state.pack()))
    services = Services()
    services.restore(old)
    monitor = VeilMon()
    monitor.restore(bench.monitor.save())
    bench.resume(monitor, services)
    with pytest.raises(VerificationFailed, match="taken back to an older state"):
        list(reader(bench, known).fetch())
    # It goes on until it has as many entries again: then they are others.
    log(bench, 2)
    log(bench, 3)
    with pytest.raises(VerificationFailed, match=r"forked|changed"):
        list(reader(bench, known).fetch())
    fresh = list(reader(bench).fetch())
    assert EntryKind.RESUMED in [entry.kind for entry in fresh]


def test_another_launch_is_another_log(bench: Bench) -> None:
    reading = reader(bench)
    list(reading.fetch())
    with pytest.raises(VerificationFailed, match="another log"):
        reader(boot(), reading.state)


def test_acknowledged_by_somebody_else(bench: Bench) -> None:
    log(bench, 1)
    mine = reader(bench)
    list(mine.fetch())
    log(bench, 2)
    other = reader(bench)
    list(other.fetch())
    log(bench, 3)
    other.acknowledge()
    with pytest.raises(VerificationFailed, match="acknowledged by somebody else"):
        list(mine.fetch())
    # A user who has never read it begins where it begins now.
    assert records(list(reader(bench).fetch())) == [record(3)]


# A log that lies: the service's own machine in the attacker's hands


def on(call: int, change: Callable[[bytes], bytes]) -> Callable[[int, bytes], bytes]:
    return lambda asked, data: change(data) if asked == call else data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (on(UserCall.FETCH, lambda data: data.replace(b":2)", b":7)")), "at least one was changed"),
        (on(UserCall.FETCH, lambda data: b""), "does not give number"),
        (on(UserCall.FETCH, lambda data: data[24:]), "came where 0 was due"),
        (on(UserCall.HEAD, lambda data: data[:-1] + bytes((data[-1] ^ 1,))), "not signed"),
        (on(UserCall.HEAD, lambda data: dataclasses.replace(Head.parse(data), root=bytes(32)).pack()), "not signed"),
        (on(UserCall.HEAD, lambda data: dataclasses.replace(Head.parse(data), size=1).pack()), "not signed"),
    ],
)  # fmt: skip
def test_lies(bench: Bench, change: Callable[[int, bytes], bytes], words: str) -> None:
    for number in range(4):
        log(bench, number)
    with pytest.raises(VerificationFailed, match=words):
        list(lying(bench, change).fetch())


def test_answers_that_cannot_be(bench: Bench) -> None:
    log(bench, 1)
    for call, data in ((UserCall.HEAD, b"x"), (UserCall.FETCH, b"x"), (UserCall.FETCH, bytes(20) + b"\xff" * 4)):
        with pytest.raises(FormatError):
            list(lying(bench, on(call, lambda _, data=data: data)).fetch())  # type: ignore[misc]


# Folders


def test_folder(bench: Bench, tmp_path: Path) -> None:
    folder = LogFolder(tmp_path / "evidence")
    assert folder.known() is None
    log(bench, 1)
    reading = reader(bench)
    assert folder.add(list(reading.fetch()), reading.state) == 2
    log(bench, 2)
    reading = reader(bench, folder.known())
    # An interrupted run leaves more than the state says.
    with open(folder.path / "entries.bin", "ab") as stream:
        stream.write(b"half an entry")
    assert folder.add(list(reading.fetch()), reading.state) == 1
    found = folder.verify()
    assert (found.entries, found.records, found.unreadable) == (3, 2, 0)
    text = (folder.path / "audit.log").read_bytes()
    assert text == b"type=SYSCALL msg=audit(1.000:1): syscall=59\ntype=SYSCALL msg=audit(1.000:2): syscall=59\n"


@pytest.mark.parametrize("at", [0, 10, 30, -1])
def test_changed_folder(bench: Bench, tmp_path: Path, at: int) -> None:
    folder = LogFolder(tmp_path)
    log(bench, 1)
    reading = reader(bench)
    folder.add(list(reading.fetch()), reading.state)
    data = bytearray((tmp_path / "entries.bin").read_bytes())
    data[at] ^= 1
    (tmp_path / "entries.bin").write_bytes(data)
    with pytest.raises((VerificationFailed, RemoteError, FormatError)):
        folder.verify()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no log"):
        LogFolder(tmp_path / "none").verify()
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(RemoteError, match="unusable"):
        LogFolder(tmp_path).known()


def test_line_ends_in_records_are_made_visible() -> None:
    """Else a record could forge the next one in the text."""
    forged = pack_records([AuditRecord(1300, b"audit(1.0:1): a\ntype=SYSCALL msg=audit(1.0:2): forged")])
    entry = LogEntry(0, 0, EntryKind.RECORDS, forged, b"")
    (line,) = audit_lines(entry)
    assert line.count(b"\n") == 1


def test_records_of_a_sound_kernel_are_written_as_they_are() -> None:
    """Else ausearch would show other names than there were."""
    text = b'audit(1.0:1): item=1 name="/tmp/back\\slash" nametype=CREATE'
    (line,) = audit_lines(LogEntry(0, 0, EntryKind.RECORDS, pack_records([AuditRecord(1302, text)]), b""))
    assert line == b"type=PATH msg=" + text + b"\n"


def test_responses_are_what_channel_tests_use() -> None:
    assert Response(1, Status.OK, b"").number == Request(1, LOG_GUID, 0).number
