# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user of VeilS-LOG gets from logs that lie, relays that meddle, and machines that were taken back."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.monitor.harness import Bench
from tests.monitor.wire import Wire
from tests.services.log.harness import (
    OWNER,
    Machine,
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
from veil.formats.log import (
    ENTRY_HEADER,
    LOG_GUID,
    LOG_NUMBER,
    AuditRecord,
    EntryKind,
    Head,
    KernelCall,
    UserCall,
    pack_records,
    parse_entries,
)
from veil.formats.merkle import CompactRange, leaf_hash
from veil.formats.status import Status
from veil.remote import ChannelClosed
from veil.remote.channel.client import ChannelClient
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
    own = service(bench)._key
    assert own is not None
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


# A hostile relay


class Relay(Wire):
    """Between user and VeilMon; from the handshake on, what comes down passes through `plan`."""

    def __init__(self, bench: Bench, plan: Callable[[list[bytes]], list[bytes]]) -> None:
        super().__init__(bench)
        self.plan = plan
        self.hostile = False
        self.sent: list[bytes] = []

    def receive(self) -> bytes:
        if not self.hostile:
            return super().receive()
        if not self.sent:
            got: list[bytes] = []
            while data := super().receive():
                got.append(data)
            # TLS records of the download, one by one.
            raw, got = b"".join(got), []
            while raw:
                end = 5 + int.from_bytes(raw[3:5], "big")
                got.append(raw[:end])
                raw = raw[end:]
            self.sent = self.plan(got)
        return self.sent.pop(0) if self.sent else b""


def _flip(pieces: list[bytes]) -> list[bytes]:
    return [pieces[0][:-1] + bytes((pieces[0][-1] ^ 1,)), *pieces[1:]]


@pytest.mark.parametrize(
    "plan",
    [
        lambda pieces: [*pieces[:1], *pieces],
        lambda pieces: [pieces[1], pieces[0], *pieces[2:]],
        lambda pieces: pieces[1:],
        lambda pieces: pieces[:-1],
        lambda pieces: [b"".join(pieces)[:-1]],
        lambda pieces: [*pieces[:2], *pieces[3:]],
        _flip,
    ],
    ids=["replayed", "reordered", "first dropped", "truncated", "cut short", "one dropped", "changed"],
)
def test_relay(bench: Bench, plan: Callable[[list[bytes]], list[bytes]]) -> None:
    """A download of several TLS records: the user gets all of it or none."""
    big = AuditRecord(1300, bytes(range(250)) * 60)
    for _ in range(4):
        assert bench.ask(LOG_NUMBER, KernelCall.RECORDS, pack_records([big])) == OK
    wire = Relay(bench, plan)
    reading = LogReader(ChannelClient(wire, identity=OWNER), manifest(bench))
    head = reading.head()
    wire.hostile = True
    with pytest.raises(ChannelClosed):
        list(reading.fetch(head))
    assert reading.state.tree.size == 0, "nothing was taken for verified"

    honest = Relay(bench, lambda pieces: pieces)
    reading = LogReader(ChannelClient(honest, identity=OWNER), manifest(bench))
    honest.hostile = True
    assert records(list(reading.fetch())) == [big] * 4


def test_the_same_without_tls(bench: Bench) -> None:
    """The counter-test: a relay within the channel gets changes past a user who verifies nothing."""
    log(bench, 1)

    def change(data: bytes) -> bytes:
        return data.replace(b"syscall=59", b"syscall=00")

    with user(bench) as client:
        raw = change(client.request(LOG_GUID, UserCall.FETCH, struct.pack("<QI", 0, 1 << 16)))
    assert list(parse_entries(raw))[1].body.endswith(b"syscall=00")
    with pytest.raises(VerificationFailed, match="at least one was changed"):
        list(lying(bench, on(UserCall.FETCH, change)).fetch())


# An old machine


def _fill(bench: Bench) -> None:
    """Until the log is full: one that never is would let this go on forever."""
    smallest = ENTRY_HEADER.size
    for _ in range(1 + (1 << 20) // smallest):
        status = bench.ask(LOG_NUMBER, KernelCall.HEARTBEAT)[0]
        if status != Status.OK:
            assert status == Status.FULL
            return
    pytest.fail("the log was not full after more heartbeats than a MiB holds")


def test_a_machine_resumed_while_its_log_was_full(bench: Bench) -> None:
    """The host chooses the moment: that it was resumed, and which of two it is, is told when there is room."""
    _fill(bench)
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


def test_a_machine_saved_again_before_its_services_ran(bench: Bench) -> None:
    """Nothing of the log is lost between two resumptions, whoever was let run meanwhile."""
    log(bench, 1)
    Machine(bench).restore(bench)
    Machine(bench).restore(bench)
    assert records(list(reader(bench).fetch())) == [record(1)]
