# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves, their programs and the kernel cannot fill the protected log."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.monitor.harness import FREE
from tests.services.enc.enclave_bench import LAYOUT, EnclaveBench
from veil.formats.enclave_calls import EnclaveCall, Reclaim, Reclaimed, Released, Return
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclave_reports import EnclaveWord
from veil.formats.enclaves import ARENA, Layout
from veil.formats.log import ENTRY_HEADER, ServiceWord
from veil.formats.log_settings import LogSettings
from veil.formats.status import Status
from veil.services.context import LogSpan
from veil.services.enc import ledger
from veil.services.enc.enclave import Enclave, State
from veil.services.enc.ledger import EnclaveLedger

_FLOOD = 600
_SIZE = 1 << 20


@pytest.fixture
def told(bench: EnclaveBench) -> list[EnclaveWord]:
    found: list[EnclaveWord] = []
    bench.service._ledger._record = lambda word, *, urgent=False: found.append(EnclaveWord.parse(word))
    return found


def _say(bench: EnclaveBench, number: int, line: str) -> None:
    assert bench.mail(number, MailboxCall.LOG, len(line), data=line.encode()).status == Status.OK


def test_a_line_again_and_again(bench: EnclaveBench, told: list[EnclaveWord]) -> None:
    number = bench.make()
    told.clear()
    for _ in range(_FLOOD):
        _say(bench, number, "system call 334 (rseq): not supported")
    assert len(told) == 1 + 16 + 5
    assert told[-1].words.endswith("(the 512th line that is not new; of these each doubling is told)")
    # What is new is told, whatever went on before; another enclave's lines are not fewer.
    _say(bench, number, "vector 29 with error code 0x0 at 0x1000")
    assert told[-1].words == "vector 29 with error code 0x0 at 0x1000"
    other = bench.make(replace(LAYOUT, pool_pages=9))
    _say(bench, other, "system call 334 (rseq): not supported")
    assert [word.event for word in told[-2:]] == ["finished", "says"]


def test_other_lines_each_time(bench: EnclaveBench, told: list[EnclaveWord], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_ANY_OF_ONE", 8000 / _SIZE)
    monkeypatch.setattr(bench.service._ledger, "_log", lambda: LogSpan(_SIZE, 1, 0))
    number = bench.make()
    for at in range(_FLOOD):
        _say(bench, number, f"line {at}")
    new = len(told) - 16 - 5
    assert 8000 <= sum(_taken(word.pack()) for word in told[:new]) < 8000 + _taken(told[0].pack())
    assert told[-1].words.endswith("th line that is not new; of these each doubling is told)")
    # After a snapshot it goes on as before.
    again = EnclaveLedger(bench.service._ledger._record, bench.service._ledger._log, lambda _: False)
    again.load(json.loads(json.dumps(bench.service._ledger.dump())))
    again.say(bench.enclave(number), b"another one")
    assert len(told) == new + 16 + 5


def _taken(word: bytes) -> int:
    """Bytes of the log, for an entry."""
    return ENTRY_HEADER.size + len(ServiceWord(3, word).pack())


class _Log:
    """The log, and the ledger that leads to it."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.size = size
        self.words: list[EnclaveWord] = []
        self.told = self.gone = 0
        self.awaited: set[bytes] = set()
        self.ledger = self._made()

    def _made(self) -> EnclaveLedger:
        return EnclaveLedger(self._record, lambda: LogSpan(self.size, self.told, self.gone), self.awaited.__contains__)

    def _record(self, word: bytes, /, *, urgent: bool = False) -> None:
        self.words.append(EnclaveWord.parse(word))
        self.told += _taken(word)

    def resume(self) -> None:
        """Another ledger, from a snapshot of this one."""
        state = json.loads(json.dumps(self.ledger.dump()))
        self.ledger = self._made()
        self.ledger.load(state)

    def told_of(self, enclave: Enclave) -> list[str]:
        return [word.words for word in self.words if word.measurement == enclave.measurement.hex()]


def _enclave(number: int, *, finished: bool = True) -> Enclave:
    """One that is made, of a measurement of its own."""
    made = Enclave(number, replace(LAYOUT, pool_pages=number, arena_pages=1 << 16))
    made.state = State.READY if finished else State.UNUSABLE
    return made


def _lead_a_life(log: _Log, enclave: Enclave) -> list[str]:
    """What an honest enclave has to say, a little at a time; and which of it is told."""
    lines = ["120 pages, 2 slots", "it waits for the secret key", "system call 101 (ptrace): not allowed"]
    log.ledger.note("finished", enclave, lines[0])
    for line in lines[1:]:
        log.ledger.say(enclave, line.encode())
    log.ledger.note("refused", enclave, "a page came back that was not given")
    log.ledger.say(enclave, b"#VC with error code 0x72 at 0x401000: no instruction there raises it")
    return log.told_of(enclave)


def _flood(log: _Log, first: int, enclaves: int, lines: int) -> None:
    """Of measurements without end, of the longest lines, which take most room in the log."""
    for number in range(first, first + enclaves):
        enclave = _enclave(number)
        for at in range(lines):
            log.ledger.say(enclave, b"%d" % at + b'\xff"' * 1024)


def test_all_of_it_takes_a_quarter_of_the_log() -> None:
    assert LogSettings().memory == 16 << 20
    log = _Log()
    _flood(log, 1, 60, 12)
    assert max(len(word.pack()) for word in log.words) < 1024
    assert log.size // 8 < log.told < log.size // 4
    # What follows is heard of still; after a snapshot as well.
    before = len(log.words)
    log.resume()
    _flood(log, 700, 60, 12)
    assert 0 < len(log.words) - before <= 2
    assert log.words[-1].words.endswith("of these each doubling is told)")


def test_short_lines_take_no_more() -> None:
    """Of a line of two letters a good part of what it takes is the log's own."""
    log = _Log()
    number = 0
    while log.told < log.size // 8:
        number += 1
        for at in range(20):
            log.ledger.say(_enclave(number), b"%02d" % at)
    told = log.told
    # All of the eighth is taken: what follows are first lines only.
    for at in range(20):
        log.ledger.say(_enclave(number + 1), b"%02d" % at)
    assert log.told - told <= 9 * _taken(log.words[-1].pack())


def test_without_a_bound_it_takes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test."""
    for part in ("_ANY", "_FIRST"):
        monkeypatch.setattr(ledger, part, 1 << 20)
    log = _Log()
    _flood(log, 1, 100, 20)
    assert log.told > log.size


@pytest.mark.parametrize(("enclaves", "lines"), [(300, 4), (40, 100)])
def test_an_enclave_that_comes_later_is_heard(enclaves: int, lines: int) -> None:
    """Many measurements with a few lines each, or few with many: there is room left for what it says first."""
    log = _Log(16 << 20)
    _flood(log, 1, enclaves, lines)
    late = _enclave(5000)
    assert len(_lead_a_life(log, late)) == 5
    # Lines that say nothing new are not what the room is for.
    for _ in range(100):
        log.ledger.say(late, b"it waits for the secret key")
    assert len(log.told_of(late)) < 5 + 16 + 5


def _exhaust(log: _Log, first: int = 1) -> None:
    """Somebody who knows how all this works."""
    _flood(log, first, 20 + (log.size >> 14), 9)
    for number in range(first + 9000, first + 9020):
        log.ledger.say(_enclave(number), b"a short line")
    assert not _lead_a_life(log, _enclave(first + 4999))


def test_one_that_an_owner_waits_for_is_heard_in_any_case() -> None:
    log = _Log()
    late, other = _enclave(7000), _enclave(7001)
    log.awaited.add(late.measurement)
    log.size = 16 << 20
    _exhaust(log)
    assert len(_lead_a_life(log, late)) == 5
    assert not _lead_a_life(log, other)
    # Not without end either, and one that is not finished is none that an owner waits for.
    for at in range(100):
        log.ledger.say(late, b"line %d" % at)
    assert len(log.told_of(late)) < 30
    log.resume()
    log.ledger.say(late, b"one more")
    assert "one more" not in log.told_of(late)
    unfinished = _enclave(7002, finished=False)
    log.awaited.add(unfinished.measurement)
    log.ledger.note("refused", unfinished, "the content of record 1 is not what the layout says")
    assert not log.told_of(unfinished)


@pytest.mark.parametrize("size", [256 << 10, 1 << 20])
def test_in_a_small_log_as_well(size: int) -> None:
    log = _Log(size)
    late = _enclave(7000)
    log.awaited.add(late.measurement)
    _exhaust(log)
    assert len(_lead_a_life(log, late)) == 5


def test_an_owner_who_acknowledges_makes_room() -> None:
    log = _Log()
    _exhaust(log)
    log.gone = log.told
    # All that was said before may be said again, too.
    late = _enclave(5000)
    for _ in range(2):
        assert len(_lead_a_life(log, late)) == 5
        log.words.clear()
        log.gone = log.told
    # A part of it makes room for a part.
    _exhaust(log, 200)
    log.gone += (log.told - log.gone) // 2
    log.resume()
    assert len(_lead_a_life(log, _enclave(6000))) == 5


def test_what_is_never_finished_takes_little() -> None:
    """To have the service refuse what is no enclave costs nothing: all of them are heard of as one."""
    log = _Log()
    for number in range(1, 300):
        log.ledger.note("refused", _enclave(number, finished=False), f"the content of record {number} is not")
    assert log.told < log.size / 64
    assert len(_lead_a_life(log, _enclave(5000))) == 5


def test_it_keeps_no_more_than_it_must() -> None:
    log = _Log()
    _flood(log, 1, 300, 1)
    _exhaust(log)
    assert len(log.ledger._accounts) == ledger._MAX_ACCOUNTS
    assert len(log.ledger._standing.lines) <= 2 * ledger._ALL / ledger._TOGETHER


def test_without_a_bound_each_line_is_told(
    bench: EnclaveBench, told: list[EnclaveWord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test."""
    monkeypatch.setattr(ledger, "_AGAIN_TOLD", 1 << 30)
    number = bench.make()
    told.clear()
    for _ in range(_FLOOD):
        _say(bench, number, "system call 334 (rseq): not supported")
    assert len(told) == _FLOOD


def _made_and_gone(bench: EnclaveBench, layout: Layout) -> None:
    bench._next = FREE
    number = bench.make(layout)
    while Released.parse(bench.destroy(number)[1]).left:
        pass


def test_enclaves_without_end(bench: EnclaveBench, told: list[EnclaveWord]) -> None:
    """A process makes the same one again and again: it has another number each time."""
    for _ in range(40):
        _made_and_gone(bench, LAYOUT)
    assert [word.event for word in told] == ["finished"] * (1 + 16 + 1)
    assert len({word.enclave for word in told}) == len(told)


def test_pages_that_the_kernel_returns_without_end(bench: EnclaveBench, told: list[EnclaveWord]) -> None:
    number = bench.make()
    assert bench.mail(number, MailboxCall.MAP, ARENA, 1, 3).status == Status.OK
    status, given = bench.enc(EnclaveCall.RECLAIM, Reclaim(number, 1).pack())
    assert status == Status.OK
    ((address, _),) = Reclaimed.parse(given).pages
    told.clear()
    (page,) = bench.frames(1)
    for _ in range(100):
        status, _ = bench.enc(EnclaveCall.RETURN, Return(number, (address,)).pack(), (page,))
        assert status == Status.NOT_ALLOWED
    assert {word.event for word in told} == {"refused"}
    assert len(told) == 1 + 16 + 2
