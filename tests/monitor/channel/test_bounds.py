# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilMon does for strangers each time that it is entered is bounded, and users whom the launch names come first.

Counted in steps and entries, with a clock of the tests' where time matters.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from OpenSSL import SSL

from tests.monitor.channel.harness import OWNER, Services, user
from tests.monitor.harness import Bench
from tests.monitor.wire import Wire, ping
from veil.formats.channel import MAX_MESSAGE, MAX_STRANGER_MESSAGE, STRANGER_WINDOW, Request, Response, pack_request
from veil.formats.monitor_calls import MonitorCall
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.monitor.channel.bounds import (
    MAX_ENTRY_NS,
    MAX_EXPECTED,
    MAX_FRAMES,
    MAX_HANDSHAKE_BYTES,
    MAX_HANDSHAKE_NS,
    MAX_HANDSHAKES,
    MAX_KNOWN,
    MAX_STRANGER_STEPS,
    MAX_STRANGERS,
)
from veil.monitor.channel.connection import Rank
from veil.monitor.channel.link import ChannelLink
from veil.monitor.ghcb import Ghcb
from veil.remote.channel.client import ChannelClient, ChannelClosed, RequestFailed
from veil.remote.channel.identity import UserKey

MS = 1_000_000


class Clock:
    """VeilMon's, which stands still unless a test moves it; `step` passes with each look."""

    def __init__(self) -> None:
        self.now = self.step = 0

    def __call__(self) -> int:
        self.now += self.step
        return self.now


@pytest.fixture
def bench() -> Bench:
    return Bench(services=Services, owners=[OWNER.fingerprint]).boot()


@pytest.fixture
def link(bench: Bench) -> ChannelLink:
    found = bench.monitor._channel
    assert found is not None
    return found


@pytest.fixture
def clock(link: ChannelLink) -> Clock:
    made = Clock()
    link._clock = made
    return made


@pytest.fixture
def answered(link: ChannelLink) -> list[Request]:
    """Requests, as they are answered."""
    found: list[Request] = []
    answer = link._requests.answer

    def watched(host: object, vcpu: int, user: object, request: Request) -> Iterator[None]:
        found.append(request)
        return answer(host, vcpu, user, request)  # type: ignore[arg-type]

    link._requests.answer = watched  # type: ignore[method-assign, assignment]
    return found


def enter(bench: Bench) -> bool:
    """One entry; is there more to do?"""
    device = bench.channel.device
    device.entered()
    bench.enter(0)
    device.flush()
    return device.pending


def flood(client: ChannelClient, count: int) -> None:
    """Requests that wait together in the rings."""
    for _ in range(count):
        client.send(CHANNEL_SERVICE, MonitorCall.PING, b"")


class Hello:
    """The user's half of a handshake, by hand."""

    def __init__(self, bench: Bench) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        self._tls = SSL.Connection(context, None)
        self._tls.set_connect_state()
        self.wire = Wire(bench)
        self.step()

    def step(self) -> None:
        """Say what is to be said now."""
        while self.wire.received:
            self._tls.bio_write(self.wire.received.popleft())
        with contextlib.suppress(SSL.WantReadError):
            self._tls.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            self.wire.send(self._tls.bio_read(1 << 16))


class Entering(Wire):
    """Whoever waits has VeilMon entered once more; counted."""

    entries = 0

    def receive(self) -> bytes:
        while not self.received and self.connection.is_open:
            self.entries += 1
            assert self.entries < 1000
            enter(self.bench)
        return super().receive()


def test_one_connections_backlog(bench: Bench, clock: Clock, answered: list[Request]) -> None:
    """A window full of requests is answered over many entries: the kernel runs between them."""
    client = user(bench)
    bench.channel.run()
    flood(client, 200)
    counts = []
    more = True
    while more:
        before = len(answered)
        more = enter(bench)
        counts.append(len(answered) - before)
    assert sum(counts) == 200
    assert max(counts) <= MAX_STRANGER_STEPS
    assert len(counts) >= 200 / MAX_STRANGER_STEPS
    for _ in range(200):
        client.receive()


def test_requests_of_many_connections(bench: Bench, clock: Clock, answered: list[Request]) -> None:
    clients = [user(bench) for _ in range(40)]
    bench.channel.run()
    for client in clients:
        flood(client, 5)
    seen = []
    while enter(bench):
        seen.append(len(answered))
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) <= MAX_STRANGER_STEPS
    assert len(answered) == 200
    for client in clients:
        for _ in range(5):
            client.receive()


def test_no_step_begins_when_the_time_is_over(bench: Bench, clock: Clock, answered: list[Request]) -> None:
    client = user(bench)
    bench.channel.run()
    flood(client, 50)
    clock.step = MAX_ENTRY_NS // 2
    counts = []
    while True:
        before = len(answered)
        more = enter(bench)
        counts.append(len(answered) - before)
        if not more:
            break
    assert sum(counts) == 50
    assert max(counts) <= 2


def test_handshakes_of_an_entry(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    hellos = [Hello(bench) for _ in range(40)]
    entries = 1
    while enter(bench):
        entries += 1
    assert entries >= 40 / MAX_HANDSHAKES
    assert all(hello.wire.received for hello in hellos), "each got an answer"


def test_who_says_nothing_costs_nothing(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    for _ in range(20):
        Wire(bench)
    bench.channel.run()
    assert len(link._connections) == 20
    assert all(connection._tls is None for connection in link._connections.values())


def test_owners_come_first(bench: Bench, link: ChannelLink, clock: Clock, answered: list[Request]) -> None:
    strangers = [user(bench) for _ in range(30)]
    owner = user(bench, OWNER)
    bench.channel.run()
    for stranger in strangers:
        flood(stranger, 4)  # fewer frames than an entry takes
    owner.send(CHANNEL_SERVICE, MonitorCall.PING, b"the owner's")
    enter(bench)
    assert answered[0].body == b"the owner's"
    assert owner.receive().body == b"the owner's"


def test_an_owner_gets_in_whatever_strangers_do(bench: Bench, clock: Clock, answered: list[Request]) -> None:
    """256 of them: half ask without end, half are in their handshakes. Counted in entries of VeilMon."""
    asking = [user(bench) for _ in range(MAX_STRANGERS // 2 - 1)]
    bench.channel.run()
    for client in asking:
        flood(client, 10)
    frames = len(asking) * 10 + MAX_STRANGERS
    for _ in range(MAX_STRANGERS // 2):
        Hello(bench)
    wire = Entering(bench)
    with ChannelClient(wire, identity=OWNER) as owner:
        ping(owner)
    # What came before his own frames is taken first, and handshakes before his, in their turn with strangers' requests.
    assert wire.entries <= frames / MAX_FRAMES + (MAX_STRANGERS // 2) / MAX_HANDSHAKES + 4


def test_owners_are_never_put_out(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    owners = [user(bench, OWNER) for _ in range(3)]
    bench.channel.run()
    for _ in range(2 * MAX_STRANGERS):
        Hello(bench)
        bench.channel.run()
    assert sum(item.rank != Rank.KNOWN for item in link._connections.values()) == MAX_STRANGERS
    for owner in owners:
        ping(owner)


def test_who_left_takes_nobodys_place(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """As many go as come, all in one entry: the oldest of those who stay is not taken for one too many."""
    first = Hello(bench)
    leavers = [Wire(bench) for _ in range(MAX_STRANGERS - 1)]
    bench.channel.run()
    for leaver in leavers[-20:]:
        leaver.connection.close()
        Wire(bench)
    bench.channel.run()
    assert first.wire.connection.is_open


def test_owners_do_not_lock_themselves_out(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """Programs that died left their connections open: the one that was silent the longest goes."""
    first = user(bench, OWNER)
    rest = [user(bench, OWNER) for _ in range(MAX_KNOWN - 1)]
    bench.channel.run()
    ping(first)
    with user(bench, OWNER) as another:
        ping(another)
    ping(first)
    with pytest.raises(ChannelClosed):
        ping(rest[0])
    assert len(link._known) == MAX_KNOWN - 1


def test_handshakes_end_in_time(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    slow = Hello(bench)
    silent = Wire(bench)
    bench.channel.run()
    clock.now += MAX_HANDSHAKE_NS - 1
    with user(bench) as client:
        ping(client)
        assert slow.wire.connection.is_open
        clock.now += 1
        ping(client)
        assert not slow.wire.connection.is_open
        assert not silent.connection.is_open
        clock.now += 10 * MAX_HANDSHAKE_NS
        ping(client)


def test_they_end_without_another_users_frames(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    silent = Wire(bench)
    bench.channel.run()
    clock.now += MAX_HANDSHAKE_NS
    enter(bench)
    assert not silent.connection.is_open


def test_nothing_is_done_without_a_reason(
    bench: Bench, link: ChannelLink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host enters VeilMon for all kinds of reasons, and the kernel waits."""
    with user(bench) as client:
        ping(client)
    bench.channel.run()
    worked, work = [], link.work

    def watched(host: Ghcb, vcpu: int) -> Iterator[None]:
        worked.append(vcpu)
        return work(host, vcpu)

    monkeypatch.setattr(link, "work", watched)
    enter(bench)
    assert worked == []
    with user(bench) as client:
        ping(client)
    assert worked


def test_handshakes_have_few_bytes(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """One that is cut into records of a byte, and never done."""
    wire = Wire(bench)
    hello = b"\x01\x00\x3f\xff" + bytes(MAX_HANDSHAKE_BYTES)
    wire.send(b"".join(b"\x16\x03\x01\x00\x01%c" % byte for byte in hello))
    bench.channel.run()
    assert not wire.connection.is_open


def test_handshakes_have_few_steps(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """One whose bytes come one by one."""
    wire = Wire(bench)
    steps = 0
    for byte in b"\x16\x03\x01\x3f\xff\x01" + bytes(100):
        if wire.connection.is_open:
            wire.send(bytes((byte,)))
            bench.channel.run()
            steps += 1
    assert steps <= 17


def test_the_newest_handshake_is_not_the_last(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """One after the other from both ends of the queue: who comes now does not wait for all who came before."""
    hellos = [Hello(bench) for _ in range(40)]  # what the ring holds
    enter(bench)
    answered = [number for number, hello in enumerate(hellos) if hello.wire.received]
    half = MAX_HANDSHAKES // 2
    assert answered == [*range(half), *range(len(hellos) - half, len(hellos))]


def test_strangers_have_little_to_say(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    with user(bench, OWNER) as owner:
        ping(owner, bytes(MAX_MESSAGE))
    stranger = user(bench, UserKey.generate())
    ping(stranger, bytes(MAX_STRANGER_MESSAGE))
    with pytest.raises(ChannelClosed):
        ping(stranger, bytes(MAX_STRANGER_MESSAGE + 1))


def test_a_host_that_gives_more_than_the_window(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    wire = Wire(bench)
    wire.connection._may_send = 1 << 20
    wire.send(bytes(STRANGER_WINDOW + 1))
    enter(bench)
    assert not wire.connection.is_open


def test_tiny_records(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """A window of records of one byte each is decrypted in many small steps."""
    client = user(bench)
    bench.channel.run()
    data = pack_request(Request(1, CHANNEL_SERVICE, MonitorCall.PING, bytes(400)))
    for at in range(len(data)):
        client._tls.send(data[at : at + 1])
    client._flush()
    (connection,) = link._connections.values()
    taken: deque[int] = deque()
    decrypt: Callable[[], None] = connection._decrypt

    def watched() -> None:
        before = len(connection._input)
        decrypt()
        taken.append(before - len(connection._input))

    connection._decrypt = watched  # type: ignore[method-assign]
    bench.channel.run()
    assert client.receive() == Response(1, 0, bytes(400))  # type: ignore[arg-type]
    assert sum(taken) > 400 * 20
    assert max(taken) <= 2048


def test_the_host_is_told_that_somebody_was_looked_at(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """Though there is nothing to answer yet: it takes in no more than VeilMon looks at."""
    wire = Wire(bench)
    looked: list[bool] = []
    wire.connection.on_taken = functools.partial(looked.append, True)
    wire.send(b"\x16")
    bench.channel.run()
    assert looked == [True]


def test_the_host_is_told_who_is_somebody(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    named: list[str] = []
    for name, identity in (("owner", OWNER), ("other", UserKey.generate()), ("nobody", None)):
        wire = Wire(bench)
        wire.connection.on_proven = functools.partial(named.append, name)
        with ChannelClient(wire, identity=identity) as client:
            ping(client)
    assert named == ["owner"]


def test_whom_the_host_expects_waits_for_no_stranger(
    bench: Bench, link: ChannelLink, clock: Clock, answered: list[Request]
) -> None:
    """However many there are, and whatever they do: a few entries. What the ring holds before his is taken first."""
    asking = [user(bench) for _ in range(MAX_STRANGERS // 2)]
    bench.channel.run()
    for client in asking:
        flood(client, 10)
    for _ in range(MAX_STRANGERS // 2):
        Hello(bench)
    frames = len(asking) * 10 + MAX_STRANGERS
    wire = Entering(bench, expected=True)
    with ChannelClient(wire, identity=OWNER) as owner:
        ping(owner)
    assert wire.entries <= frames / MAX_FRAMES + 4
    assert not link._expected


def test_strangers_do_not_put_out_whom_the_host_expects(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    wire = Wire(bench, expected=True)
    bench.channel.run()
    for _ in range(2 * MAX_STRANGERS):
        Hello(bench)
        bench.channel.run()
    assert wire.connection.is_open
    with ChannelClient(wire, identity=OWNER) as owner:
        ping(owner)


def test_whom_the_host_expects_is_nobody_until_he_proves_it(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """The host's word gives precedence and nothing else: no role, no larger requests, no longer handshake."""
    with ChannelClient(Wire(bench, expected=True), identity=UserKey.generate()) as stranger:
        ping(stranger)
        connection = next(reversed(link._connections.values()))
        assert connection.rank == Rank.STRANGER
        assert not link._expected
        with pytest.raises(RequestFailed, match="only a reader or an owner"):
            stranger.request(CHANNEL_SERVICE, MonitorCall.STATUS)
        with pytest.raises(ChannelClosed):
            ping(stranger, bytes(MAX_STRANGER_MESSAGE + 1))
    late = Wire(bench, expected=True)
    bench.channel.run()
    clock.now += MAX_HANDSHAKE_NS
    bench.channel.run()
    with user(bench) as client:
        ping(client)
    assert not late.connection.is_open


def test_a_host_that_expects_everybody(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """What VeilMon holds stays bounded, and its owners who are in stay in."""
    owner = user(bench, OWNER)
    wires = []
    for _ in range(MAX_EXPECTED + 2):
        wires.append(Wire(bench, expected=True))
    bench.channel.run()
    assert len(link._expected) == MAX_EXPECTED
    assert [wire.connection.is_open for wire in wires] == [False, False, *[True] * MAX_EXPECTED]
    ping(owner)
    # Those that turn out to be strangers count as such.
    for _ in range(MAX_STRANGERS + 5):
        ChannelClient(Wire(bench, expected=True))
        bench.channel.run()
    strangers = [item for item in link._connections.values() if item.rank == Rank.STRANGER]
    assert len(strangers) == MAX_STRANGERS
    ping(owner)


def test_answers_of_strangers_do_not_hold_up_an_owners(bench: Bench, link: ChannelLink, clock: Clock) -> None:
    """Though each has a backlog as large as the ring to VeilMon's host."""
    strangers = [user(bench) for _ in range(3)]
    owner = user(bench, OWNER)
    bench.channel.run()
    for stranger in strangers:
        for _ in range(4):
            stranger.send(CHANNEL_SERVICE, MonitorCall.PING, bytes(MAX_STRANGER_MESSAGE - 512))
    owner.send(CHANNEL_SERVICE, MonitorCall.PING, b"the owner's")
    sent: list[int] = []
    for connection in list(link._connections.values()):
        next_frame = connection.next_frame
        connection.next_frame = _noted(next_frame, connection.rank, sent)  # type: ignore[method-assign]
    enter(bench)
    assert Rank.KNOWN in sent
    assert sent == sorted(sent), "his first"
    assert owner.receive().body == b"the owner's"


def _noted(next_frame: Callable[[], bytes | None], rank: int, sent: list[int]) -> Callable[[], bytes | None]:
    def noted() -> bytes | None:
        frame = next_frame()
        if frame is not None:
            sent.append(rank)
        return frame

    return noted
