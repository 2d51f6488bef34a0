# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between user and VeilMon that meddles with downloads of the log."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.monitor.harness import Bench
from tests.monitor.wire import Wire
from tests.services.log.harness import OWNER, boot, log, lying, manifest, records, user
from veil.formats.log import LOG_GUID, LOG_NUMBER, AuditRecord, KernelCall, UserCall, pack_records, parse_entries
from veil.formats.status import Status
from veil.remote import ChannelClosed
from veil.remote.channel.client import ChannelClient
from veil.remote.errors import VerificationFailed
from veil.remote.log.reader import LogReader

OK = (Status.OK, b"")


@pytest.fixture
def bench() -> Bench:
    return boot()


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
        list(lying(bench, lambda call, data: change(data) if call == UserCall.FETCH else data).fetch())
