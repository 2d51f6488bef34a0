# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user of VeilS-LOG gets from logs that lie, and from machines that were taken back."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.monitor.harness import Bench
from tests.services.log.harness import (
    Machine,
    Services,
    boot,
    log,
    lying,
    manifest,
    reader,
    record,
    records,
    service,
    user,
)
from veil.formats.errors import FormatError
from veil.formats.log import LOG_GUID, EntryKind, Head, UserCall, parse_entries
from veil.formats.merkle import CompactRange, leaf_hash
from veil.formats.status import Status
from veil.monitor import VeilMon
from veil.remote.errors import VerificationFailed
from veil.remote.log.reader import LogReader, LogState

OK = (Status.OK, b"")


@pytest.fixture
def bench() -> Bench:
    return boot()


# A log that lies


def signed(head: Head, key: ec.EllipticCurvePrivateKey) -> bytes:
    return dataclasses.replace(head, signature=key.sign(head.signed_bytes, ec.ECDSA(hashes.SHA256()))).pack()


def on(call: int, change: Callable[[bytes], bytes]) -> Callable[[int, bytes], bytes]:
    return lambda asked, data: change(data) if asked == call else data


def test_head_with_another_key(bench: Bench) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    forge = on(UserCall.HEAD, lambda data: signed(Head.parse(data), key))
    with pytest.raises(VerificationFailed, match="not signed by the log's key"):
        lying(bench, forge).head()
    # The log's own key is what the reader believes.
    own = service(bench).key.private
    assert lying(bench, on(UserCall.HEAD, lambda data: signed(Head.parse(data), own))).head().size == 1


def test_another_log_in_its_place() -> None:
    """Another machine of the same image, honest but for whom it speaks: its head, its entries, or both."""
    mine, other = boot(), boot()
    for number in range(3):
        log(mine, number)
        log(other, number)
    stranger = user(other)

    def answer(*calls: int) -> Callable[[int, bytes], bytes]:
        def change(call: int, data: bytes) -> bytes:
            if call not in calls:
                return data
            body = struct.pack("<QI", 0, 192 << 10) if call == UserCall.FETCH else b""
            return stranger.request(LOG_GUID, call, body)

        return change

    for calls, words in (
        ((UserCall.HEAD,), "not signed by the log's key"),
        ((UserCall.FETCH,), "at least one was changed"),
        ((UserCall.HEAD, UserCall.FETCH), "not signed by the log's key"),
    ):
        with pytest.raises(VerificationFailed, match=words):
            list(lying(mine, answer(*calls)).fetch())
    with pytest.raises(VerificationFailed, match="another log"):
        LogReader(stranger, manifest(other), known=reader(mine).state)
    assert records(list(lying(other, answer(UserCall.HEAD, UserCall.FETCH)).fetch())) == [record(n) for n in range(3)]


def test_an_older_head(bench: Bench) -> None:
    """A genuine one, kept by who answers: it hides what came since."""
    log(bench, 1)
    with user(bench) as client:
        old = client.request(LOG_GUID, UserCall.HEAD)
    log(bench, 2)
    known = (reading := reader(bench)).state
    list(reading.fetch())
    known = LogState.load(json.loads(reading.state.pack()))
    with pytest.raises(VerificationFailed, match="3 were verified before: the machine was taken back"):
        lying(bench, on(UserCall.HEAD, lambda data: old), known).head()
    # A user who remembers nothing believes it: what the head says was true once.
    assert records(list(lying(bench, on(UserCall.HEAD, lambda data: old)).fetch())) == [record(1)]


@pytest.mark.parametrize("name", ["time_ns", "dropped"])
def test_a_count_that_goes_back(bench: Bench, name: str) -> None:
    """Each of the two alone: the head that was seen was one of a later state, though nothing was logged since."""
    own = service(bench).key.private

    def later(data: bytes) -> bytes:
        head = Head.parse(data)
        return signed(dataclasses.replace(head, **{name: getattr(head, name) + (1 << 40)}), own)

    log(bench, 1)
    list((reading := lying(bench, on(UserCall.HEAD, later))).fetch())
    known = LogState.load(json.loads(reading.state.pack()))
    with pytest.raises(VerificationFailed, match="time or count went back"):
        reader(bench, known).head()


@pytest.mark.parametrize("more", [0, 1])
def test_a_fork(bench: Bench, more: int) -> None:
    """Another history of the same length, or a longer one, signed with the same key."""
    log(bench, 1)
    start = Machine(bench)
    log(bench, 2)
    list((reading := reader(bench)).fetch())
    known = LogState.load(json.loads(reading.state.pack()))
    start.restore(bench)
    for number in range(more):
        log(bench, number)
    words = "it was forked" if not more else "forked after it was verified last"
    with pytest.raises(VerificationFailed, match=words):
        list(reader(bench, known).fetch())
    # The same machine seen by somebody new is a good log, that says that it was restored.
    assert EntryKind.RESUMED in [entry.kind for entry in reader(bench).fetch()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data + data, "entry 0 came where 5 was due"),
        (lambda data: b"".join(reversed([entry.raw for entry in parse_entries(data)])), "came where 0 was due"),
        (lambda data: b"".join([e.raw for e in parse_entries(data) if e.sequence != 2]), "entry 3 came where 2"),
        (lambda data: data[:-8] + b"00000000", "at least one was changed"),
        (lambda data: data[:8] + b"\0" * 8 + data[16:], "at least one was changed"),
        (lambda data: data[:16] + b"\2" + data[17:], "at least one was changed"),
    ],
    ids=["twice", "reordered", "left out", "text", "time", "kind"],
)
def test_entries_that_are_not_the_heads(bench: Bench, change: Callable[[bytes], bytes], words: str) -> None:
    for number in range(4):
        log(bench, number)
    with pytest.raises(VerificationFailed, match=words):
        list(lying(bench, on(UserCall.FETCH, change)).fetch())


def test_forged_beginning(bench: Bench) -> None:
    """A user who reads for the first time after an acknowledgement gets the tree of the rest from the log."""
    for number in range(5):
        log(bench, number)
    first = reader(bench)
    list(first.fetch())
    first.acknowledge()
    log(bench, 9)

    def other_tree(data: bytes) -> bytes:
        tree = CompactRange()
        for number in range(6):
            tree.append(leaf_hash(b"forged %d" % number))
        return struct.pack("<Q", 6) + b"".join(tree.hashes)

    with pytest.raises(VerificationFailed, match="are not those of the signed head"):
        list(lying(bench, on(UserCall.RANGE, other_tree)).fetch())
    with pytest.raises(FormatError):
        list(lying(bench, on(UserCall.RANGE, lambda data: data[:-32])).fetch())
    assert records(list(reader(bench).fetch())) == [record(9)]


# Machines that were taken back


def test_a_machine_saved_again_before_its_services_ran(bench: Bench) -> None:
    """Nothing of the log is lost between two resumptions, whoever was let run meanwhile."""
    log(bench, 1)
    Machine(bench).restore(bench)
    Machine(bench).restore(bench)
    assert records(list(reader(bench).fetch())) == [record(1)]


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
