# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves, their programs and the kernel cannot fill the protected log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.monitor.harness import FREE
from tests.services.enc.enclave_bench import LAYOUT, EnclaveBench
from veil.formats.enclave_calls import EnclaveCall, Reclaim, Reclaimed, Released, Return
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclave_reports import EnclaveWord
from veil.formats.enclaves import ARENA, Layout
from veil.formats.log_settings import LogSettings
from veil.formats.status import Status
from veil.services.enc import ledger
from veil.services.enc.enclave import Enclave
from veil.services.enc.ledger import EnclaveLedger

_FLOOD = 600


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
    monkeypatch.setattr(ledger, "_MAX_NEW", 40)
    number = bench.make()
    for at in range(_FLOOD):
        _say(bench, number, f"line {at}")
    assert len(told) == 40 + 16 + 5
    # After a snapshot it goes on as before.
    again = EnclaveLedger.load(bench.service._ledger._record, bench.service._ledger.dump())
    again.say(bench.enclave(number), b"another one")
    assert len(told) == 40 + 16 + 5


def _longest_lines() -> tuple[EnclaveLedger, list[bytes]]:
    """What is told of measurements without end, whose lines are the longest, of what takes most room in the log."""
    words: list[bytes] = []
    told = EnclaveLedger(lambda word, *, urgent=False: words.append(word))
    for pages in range(8, 28):
        enclave = Enclave(pages, replace(LAYOUT, pool_pages=pages))
        for at in range(_FLOOD):
            told.say(enclave, b"%d" % at + b'\xff"' * 1024)
    return told, words


def test_as_much_as_the_log_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LogSettings().memory // 4 >= ledger._MOST_BYTES
    monkeypatch.setattr(ledger, "_MOST_BYTES", 1 << 20)
    told, words = _longest_lines()
    assert max(map(len, words)) < 1024
    assert sum(map(len, words)) < 1.2 * (1 << 20)
    # What follows is heard of still; after a snapshot as well.
    before = len(words)
    for _ in range(4):
        told.say(Enclave(1, replace(LAYOUT, pool_pages=7)), b"the same")
    assert len(words) == before + 3
    again = EnclaveLedger.load(told._record, told.dump())
    again.say(Enclave(1, replace(LAYOUT, pool_pages=7)), b"the same")
    assert len(words) == before + 3
    again.say(Enclave(1, replace(LAYOUT, pool_pages=6)), b"another's")
    assert len(words) == before + 4
    # The counter-test.
    monkeypatch.setattr(ledger, "_MOST_BYTES", 1 << 60)
    assert sum(map(len, _longest_lines()[1])) > 4 << 20


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


def test_enclaves_of_many_measurements(
    bench: EnclaveBench, told: list[EnclaveWord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_MAX_MEASUREMENTS", 4)
    monkeypatch.setattr(ledger, "_MAX_NEW_OF_ALL", 8)
    for pages in range(8, 48):
        _made_and_gone(bench, replace(LAYOUT, pool_pages=pages))
    # Four have accounts of their own; all the others have one, and four lines that are new.
    assert len(told) <= 8 + 16 + 1


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
