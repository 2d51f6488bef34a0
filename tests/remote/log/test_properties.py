# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever is appended, acknowledged, restored, and done by hostile relays: a verified log is what was appended.

The real service, store, reader and folder; only the channel is left out, whose part is that a relay cannot lie at all.
Here it can: what the reader checks must do alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.examples import examples
from tests.remote.log.killing import Killed, killing
from tests.services.log.desk import Client, Desk, event
from veil.formats.errors import FormatError
from veil.formats.log import ENTRY_HEADER, EntryKind, Head, KernelCall, UserCall, parse_entries
from veil.formats.merkle import CompactRange, leaf_hash
from veil.formats.status import Status
from veil.remote.channel.client import RequestFailed
from veil.remote.errors import VerificationFailed
from veil.remote.log.folder import LogFolder
from veil.remote.log.reader import LogReader

_NS = 1_000_000_000
_MEMORY = 64 << 10
_BIG = 9000
LIES = ("replay", "swap", "drop", "repeat", "cut", "flip", "head", "range", "fork", "nothing")


class Relay(Client):
    """Carries requests, and lies in one of the answers."""

    def __init__(self, log: Log, lie: str, data: st.DataObject) -> None:
        super().__init__(log.desk)
        self._log, self._lie, self._data = log, lie, data
        self._fork = Client(log.fork) if log.fork is not None else None

    def request(self, service: Any, call: int, body: bytes = b"") -> bytes:
        if self._lie == "fork" and self._fork is not None and self._data.draw(st.booleans()):
            return self._fork.request(service, call, body)
        answer = super().request(service, call, body)
        old = self._log.answers.get(call, answer)
        self._log.answers[call] = answer
        draw = self._data.draw
        if self._lie == "replay" and draw(st.booleans()):
            return old
        if self._lie == "head" and call == UserCall.HEAD:
            head = Head.parse(answer)
            name = draw(st.sampled_from(["size", "first", "time_ns", "last_ns", "dropped"]))
            value = max(0, getattr(head, name) + draw(st.sampled_from([-1, 1])))
            if (name, value) != ("first", 0) and getattr(head, name) != value:
                return dataclasses.replace(head, **{name: value}).pack()
        if self._lie == "range" and call == UserCall.RANGE and len(answer) > 8:
            return answer[:8] + bytes(32) + answer[40:]
        if call != UserCall.FETCH or not answer:
            return answer
        if self._lie == "cut":
            return answer[: draw(st.integers(0, len(answer) - 1))]
        if self._lie == "flip":
            at = draw(st.integers(0, len(answer) - 1))
            return answer[:at] + bytes((answer[at] ^ draw(st.integers(1, 255)),)) + answer[at + 1 :]
        entries = [entry.raw for entry in parse_entries(answer)]
        at = draw(st.integers(0, len(entries) - 1))
        if self._lie == "drop":
            del entries[at]
        elif self._lie == "repeat":
            entries.insert(at, entries[at])
        elif self._lie == "swap":
            other = draw(st.integers(0, len(entries) - 1))
            entries[at], entries[other] = entries[other], entries[at]
        return b"".join(entries)


class Log(RuleBasedStateMachine):
    """`truth` has the raw entries that the service took, in order, since the launch."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory(prefix="veil-log-")
        self.folders = 0
        self.truth: list[bytes] = []
        self.snapshots: list[tuple[tuple[bytes, bytes, int], list[bytes]]] = []
        self.fork: Desk | None = None
        self.pasts: list[list[bytes]] = []  # what was appended to the fork, or before the machine was taken back
        self.answers: dict[int, bytes] = {}
        # what the user verified, with what it stands on, though that was not read here; None for a new folder
        self.known: list[bytes] | None = None
        self.number = 0

    @initialize(full=st.sampled_from(["halt", "drop"]))
    def launch(self, full: str) -> None:
        self.full = full
        self.desk = Desk(_MEMORY, full)
        self.look()
        self.new_folder()
        self.snapshot()

    def teardown(self) -> None:
        self.place.cleanup()

    def look(self) -> list[bytes]:
        """The entries that came into the service's memory since the last time, at the end of the truth too."""
        new = _from(self.desk, len(self.truth))
        self.truth += new
        return new

    # The kernel

    def say(self, call: KernelCall, body: bytes) -> None:
        service = self.desk.service
        dropped = service.writer.dropped
        status = self.desk.kernel(call, body)
        new = list(parse_entries(b"".join(self.look())))
        if status == Status.OK and service.writer.dropped == dropped:
            assert (new[-1].body, new[-1].time_ns) == (body, self.desk.now)
            own = new[:-1]
        else:
            assert status == (Status.FULL if self.full == "halt" else Status.OK)
            assert service.writer.dropped == dropped + (self.full == "drop")
            own = new
        assert all(entry.kind in (EntryKind.DROPPED, EntryKind.RESUMED, EntryKind.SILENCE) for entry in own)

    @rule(size=st.integers(0, 3), count=st.integers(1, 4))
    def append(self, size: int, count: int) -> None:
        for _ in range(count):
            self.number += 1
            self.say(KernelCall.RECORDS, event(self.number) + bytes(size))

    @rule()
    def append_much(self) -> None:
        self.say(KernelCall.RECORDS, bytes(_BIG))

    @rule(call=st.sampled_from([KernelCall.HEARTBEAT, KernelCall.INTENT]))
    def other_call(self, call: KernelCall) -> None:
        self.say(call, b"")

    @rule()
    def fill(self) -> None:
        """Until there is no room for a word of the service either."""
        store, before = self.desk.service.store, -1
        # The service may have something to say first, and no room for it.
        while (room := store.free - 2 * ENTRY_HEADER.size - 8) >= 0 and store.free != before:
            before = store.free
            self.say(KernelCall.RECORDS, bytes(min(room, _BIG)))

    # The host

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.desk.save(), list(self.truth)))

    @rule(data=st.data(), fork=st.booleans())
    def restore(self, data: st.DataObject, fork: bool) -> None:
        """The machine goes on from an older state; or another one does, beside it."""
        state, truth = self.snapshots[data.draw(st.integers(0, len(self.snapshots) - 1))]
        if fork:
            self.fork = Desk(_MEMORY, self.full)
            self.fork.restore(state)
            for number in range(data.draw(st.integers(0, 5))):
                self.fork.log(1000 + number)
            self.pasts.append(truth + _from(self.fork, len(truth)))
            return
        self.pasts.append(self.truth)
        self.desk.restore(state)
        self.truth = list(truth)
        self.look()

    @rule(more=st.integers(0, 3), full=st.booleans())
    def take_back_under_a_reader(self, more: int, full: bool) -> None:
        """Back to before the user came last, and on from there."""
        if full:
            self.fill()
        self.snapshot()
        for _ in range(more):
            self.append(0, 1)
        self.desk.now += _NS
        self.fetch()
        state, truth = self.snapshots[-1]
        self.pasts.append(self.truth)
        self.desk.restore(state)
        self.truth = list(truth)
        self.look()
        for _ in range(more):
            self.append(0, 1)
        self.fetch()

    # The user

    @rule()
    def new_folder(self) -> None:
        self.folders += 1
        self.folder = LogFolder(Path(self.place.name) / str(self.folders))
        self.known = None

    def fetch_by(self, client: Any) -> LogReader:
        """As the command does, from what the folder says."""
        with self.folder.lock():
            reader = self.desk.reader(self.folder.known(), client)
            self.folder.add(list(reader.fetch()), reader.state)
        return reader

    def reason_to_refuse(self) -> str | None:
        """Words of the failure that there must be."""
        if self.known is None:
            return None
        state = self.folder.known()
        assert state is not None
        assert state.seen is not None
        head = state.seen.head
        if len(self.truth) < head.size:
            return "older state"
        if self.truth[: head.size] != self.known:
            return "forked|changed|acknowledged by somebody else|older state"
        if self.desk.now < head.time_ns or self.desk.service.writer.dropped < head.dropped:
            return "older state"
        if self.desk.service.store.first > head.size:
            return "acknowledged by somebody else"
        return None

    @rule()
    def fetch(self) -> None:
        reason = self.reason_to_refuse()
        if reason is not None:
            with pytest.raises(VerificationFailed, match=reason):
                self.fetch_by(None)
            return
        begin = self.desk.service.store.first if self.known is None else None
        reader = self.fetch_by(None)
        if begin is not None:
            assert reader.state.begin.size == begin
        assert reader.state.seen is not None
        assert reader.state.seen.head.dropped == self.desk.service.writer.dropped
        self.known = list(self.truth)

    @rule(data=st.data(), lie=st.sampled_from(LIES))
    def fetch_by_a_liar(self, data: st.DataObject, lie: str) -> None:
        """It fails, or what it brought is what a machine with the log's key appended."""
        try:
            reader = self.fetch_by(Relay(self, lie, data))
        except (VerificationFailed, FormatError, RequestFailed):
            return
        begin, size = reader.state.begin.size, reader.state.tree.size
        assert reader.state.seen is not None
        if lie not in ("fork", "replay"):
            head, service = reader.state.seen.head, self.desk.service
            assert (head.time_ns, head.last_ns, head.dropped) == (
                self.desk.now,
                service.kernel.last_ns,
                service.writer.dropped,
            )
        found = [entry.raw for entry in self.folder.entries()]
        branches = [self.truth, *(self.pasts if lie in ("fork", "replay") else [])]
        matching = [branch[:size] for branch in branches if branch[begin:size] == found and len(branch) >= size]
        # Two that differ only in what was never read here have different trees.
        self.known = next(known for known in matching if _tree(known).root() == reader.state.tree.root())

    @rule(calls=st.integers(1, 9))
    def fetch_and_be_killed(self, calls: int) -> None:
        reason = self.reason_to_refuse()
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, calls)
            with contextlib.suppress(Killed, VerificationFailed):
                self.fetch_by(None)
        state = self.folder.known()
        if state is None:
            assert self.known is None
        elif reason is None and _tree(self.truth).root() == state.tree.root():
            # Killed before or after the state was in its place: what the folder says decides.
            self.known = list(self.truth)

    @precondition(lambda self: self.known is not None)
    @rule()
    def acknowledge(self) -> None:
        with self.folder.lock():
            reader = self.desk.reader(self.folder.known())
            try:
                reader.head()
            except VerificationFailed:
                assert self.reason_to_refuse() is not None
                return
            reader.acknowledge()
        self.look()

    @rule()
    def acknowledged_by_somebody_else(self) -> None:
        other = self.desk.reader()
        list(other.fetch())
        other.acknowledge()
        self.look()

    @invariant()
    def the_folder_holds(self) -> None:
        """What the user has is what was verified, whatever is done elsewhere."""
        if self.known is not None:
            state = self.folder.known()
            assert state is not None
            assert [entry.raw for entry in self.folder.verified()] == self.known[state.begin.size :]


def _tree(entries: list[bytes]) -> CompactRange:
    tree = CompactRange()
    for raw in entries:
        tree.append(leaf_hash(raw))
    return tree


def _from(desk: Desk, first: int) -> list[bytes]:
    """The raw entries that a service has from one on."""
    store = desk.service.store
    found: list[bytes] = []
    while first + len(found) < store.next:
        found += [entry.raw for entry in parse_entries(store.read(first + len(found), 1 << 20))]
    return found


TestLog = Log.TestCase
TestLog.settings = settings(deadline=None, max_examples=examples(150), stateful_step_count=30)
