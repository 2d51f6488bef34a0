# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that fills the protected log first: what is told of an enclave finds its place there all the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.monitor.harness import FREE
from tests.monitor.wire import Wire
from tests.services.enc.enclave_bench import LAYOUT, EnclaveBench
from tests.services.log.harness import OWNER, log
from veil.formats.enclave_calls import ENC_GUID, ENC_NUMBER, Released
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclave_reports import EnclaveUserCall, EnclaveWord, Provision
from veil.formats.enclave_settings import LOG_SHARE, EncSettings
from veil.formats.enclaves import Layout
from veil.formats.log import EntryKind, LogEntry, ServiceWord
from veil.formats.status import Status
from veil.remote.channel.client import ChannelClient
from veil.remote.log.reader import LogReader
from veil.services import ServiceDomain
from veil.services.enc.service import EncService
from veil.services.log import LogService

_SIZE = 128 << 10
_ENOSYS = "system call 101 (ptrace): not supported"


class _Services(ServiceDomain):
    """The log, and enclaves."""

    service_types = (LogService, EncService)


class _Machine:
    """A machine with both, its kernel and its owner."""

    def __init__(self, full: str = "halt") -> None:
        settings = {"log": {"memory": _SIZE, "full": full}}
        self.bench = EnclaveBench(_Services, settings, owners=[OWNER.fingerprint])
        self.bench.boot()
        self.owner = ChannelClient(Wire(self.bench), identity=OWNER)
        self.reader = LogReader(self.owner, self.bench.monitor.state.services[0].manifest)

    @property
    def log(self) -> LogService:
        assert self.bench.services is not None
        found = self.bench.services.services[0]
        assert isinstance(found, LogService)
        return found

    def fill(self) -> None:
        """With records of the kernel's, until the log takes no more."""
        for count in (40, 1):
            dropped = self.log.writer.dropped
            while log(self.bench, *range(count))[0] == Status.OK and self.log.writer.dropped == dropped:
                assert self.log.store.next < _SIZE, "the log was never full"

    def make(self, layout: Layout) -> int:
        self.bench._next = FREE
        return self.bench.make(layout)

    def end(self, number: int) -> None:
        while Released.parse(self.bench.destroy(number)[1]).left:
            pass

    def make_others(self, count: int, first: int = 0) -> None:
        """Each of another measurement; what is told of them are the first words."""
        for at in range(first, first + count):
            self.end(self.make(replace(LAYOUT, arena_pages=2000 + at)))

    def send(self, layout: Layout) -> None:
        """A secret, for enclaves of this measurement."""
        self.owner.request(ENC_GUID, EnclaveUserCall.PROVISION, Provision(layout.measurement, b"key", b"k" * 32).pack())

    def complain(self, number: int, line: str = _ENOSYS) -> None:
        assert self.bench.mail(number, MailboxCall.LOG, len(line), data=line.encode()).status == Status.OK

    def told(self, layout: Layout) -> list[str]:
        """Of this measurement, in the log as it is now."""
        return [word.words for word in _words(self.reader.fetch()) if word.measurement == layout.measurement.hex()]


def _words(entries: object) -> list[EnclaveWord]:
    found = []
    for entry in entries:  # type: ignore[attr-defined]
        assert isinstance(entry, LogEntry)
        if entry.kind == EntryKind.WORD:
            word = ServiceWord.parse(entry.body)
            if word.service == ENC_NUMBER:
                found.append(EnclaveWord.parse(word.body))
    return found


@pytest.fixture(autouse=True)
def small_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench's mailbox is smaller than a real machine's."""
    monkeypatch.setattr("veil.remote.log.reader._CHUNK", 64 << 10)


@pytest.mark.parametrize("full", ["halt", "drop"])
def test_an_enclave_with_a_secret_is_heard_in_a_full_log(full: str) -> None:
    """The kernel fills it, then makes enclaves without end, then the one that somebody waits for."""
    machine = _Machine(full)
    machine.send(LAYOUT)
    machine.fill()
    machine.make_others(110)
    number = machine.make(LAYOUT)
    machine.complain(number)
    # It is there before the owner has made room.
    first, *others = machine.told(LAYOUT)
    assert first.endswith("2 slots")
    assert others == [_ENOSYS]


def test_without_its_share_it_runs_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: 64 words wait for room, and those of the enclave are not among them."""
    monkeypatch.setattr(EncSettings, "log_share", 0.0)
    machine = _Machine()
    machine.send(LAYOUT)
    machine.fill()
    machine.make_others(110)
    machine.complain(machine.make(LAYOUT))
    assert not machine.told(LAYOUT)
    machine.reader.acknowledge()
    assert not machine.told(LAYOUT)
    assert machine.reader.head().dropped


def test_a_secret_that_is_sent_later() -> None:
    """An enclave may wait for what its owner sends: that it runs is told then, if there was no room before."""
    machine = _Machine()
    machine.make_others(130)
    number = machine.make(LAYOUT)
    assert not machine.told(LAYOUT)
    machine.send(LAYOUT)
    machine.complain(number)
    # Sent again, it is not told again.
    machine.send(LAYOUT)
    assert [words[-7:] for words in machine.told(LAYOUT)] == ["2 slots", _ENOSYS[-7:]]


def test_others_words_and_dropped_calls_take_none_of_it() -> None:
    machine = _Machine("drop")
    for at in range(3000):
        machine.log.keep_word(7, b"%d" % at + bytes(100), urgent=at % 2 == 0)
    machine.fill()
    for number in range(1000):
        log(machine.bench, number)
    share = int(LOG_SHARE * _SIZE)
    assert share <= machine.log.store.free < share + 200
    machine.send(LAYOUT)
    machine.complain(machine.make(LAYOUT))
    assert len(machine.told(LAYOUT)) == 2


def test_the_share_is_there_again_after_an_owner_has_acknowledged() -> None:
    machine = _Machine()
    for turn in range(3):
        machine.make_others(130, 130 * turn)
        # As after a snapshot.
        machine.log.writer.load(json.loads(json.dumps(machine.log.writer.dump())))
        machine.fill()
        list(machine.reader.fetch())
        machine.reader.acknowledge()
    machine.fill()
    assert machine.log.store.free >= int(LOG_SHARE * _SIZE)
    machine.send(LAYOUT)
    machine.complain(machine.make(LAYOUT))
    assert len(machine.told(LAYOUT)) == 2


def test_a_resumption_in_a_full_log_is_told_before_all_else() -> None:
    """It takes its place where it finds one: two machines from one snapshot must not go on alike."""
    machine = _Machine()
    machine.fill()
    machine.log.writer.resumed(b"n" * 32)
    machine.send(LAYOUT)
    machine.make(LAYOUT)
    kinds = [entry.kind for entry in machine.reader.fetch()]
    assert kinds[-2:] == [EntryKind.RESUMED, EntryKind.WORD]


def test_without_enclaves_the_kernel_has_all_of_it() -> None:
    assert EncSettings().log_share == 0
    assert EncSettings(mode="on").log_share == LOG_SHARE
