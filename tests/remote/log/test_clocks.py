# SPDX-License-Identifier: GPL-2.0-or-later
"""What the analysis of a verified log says of the kernel's clock, by the times that records claim."""

from __future__ import annotations

import pytest

from tests.remote.log.audit_log import BOOT_MS, NS, Log
from veil.formats.log import AuditRecord, EntryKind, pack_records
from veil.remote.log.findings import FindingKind as Kind

HOUR_MS = 3_600_000


@pytest.fixture
def log() -> Log:
    return Log()


def intent(log: Log, number: int, *, ms: int, after: float = 0.01) -> None:
    """An intent, stamped by a clock that is `ms` milliseconds ahead of the right one."""
    log.now += int(after * NS)
    stamp = log.stamp(1 << 31 | number, BOOT_MS + log.now // 1_000_000 + ms)
    log.add(EntryKind.INTENT, pack_records([AuditRecord(1121, stamp + b"pid=1 msg='veil-intent op=exec comm=\"sh\"'")]))


def test_a_clock_that_steps(log: Log) -> None:
    for _ in range(100):
        log.event(after=1.0)
        log.beats(1)
    before = len(log.entries)
    for _ in range(30):
        log.event(after=1.0, ms=BOOT_MS + log.now // 1_000_000 + 3_600_000)
        log.beats(1)
    (finding,) = log.findings()
    assert (finding.kind, finding.entry, finding.trouble) == (Kind.CLOCK, before, True)
    assert "forward by 3599.0 s" in finding.words
    for _ in range(60):
        log.event(after=1.0)
        log.beats(1)
    assert "back by" in log.findings()[-1].words


def test_a_clock_that_creeps(log: Log) -> None:
    for step in range(200):
        log.event(after=1.0, ms=BOOT_MS + log.now // 1_000_000 + 500 * step)
        log.beats(1)
    assert Kind.CLOCK in log.kinds()
    assert log.analyse().findings.trouble


def test_a_clock_that_drifts_as_clocks_do(log: Log) -> None:
    for step in range(300):
        log.event(after=59.0, ms=BOOT_MS + (log.now + 59 * NS) // 1_000_000 + 6 * step)
        log.beats(1)
    assert log.kinds(silence=100) == []


def test_a_clock_that_was_set(log: Log) -> None:
    for _ in range(100):
        log.event(after=1.0)
        log.beats(1)
    log.say(1332, b"sec=3600 nsec=0")
    log.event(ms=BOOT_MS + log.now // 1_000_000 + 3_600_000)
    analysis = log.analyse()
    assert [item.kind for item in analysis.findings.items] == [Kind.CLOCK]
    assert analysis.findings.trouble == 0


def test_long_calls_are_no_clock_that_went_back(log: Log) -> None:
    for step in range(300):
        log.event(after=1.0, ms=BOOT_MS + log.now // 1_000_000 - 1000 * (step * 7 % 90) if step % 2 else None)
        log.beats(1)
    assert log.kinds() == []


@pytest.mark.parametrize("back_ms", [60_000, HOUR_MS, 32 * 365 * 24 * HOUR_MS])
def test_one_intent_shows_that_a_clock_was_set_back(log: Log, back_ms: int) -> None:
    for _ in range(100):
        log.event(after=0.5)
        log.beats(1)
    intent(log, 1, ms=-back_ms)
    (finding,) = log.findings()
    assert (finding.kind, finding.entry, finding.trouble) == (Kind.CLOCK, len(log.entries) - 1, True)
    assert f"back by {back_ms // 1000}." in finding.words


def test_one_message_of_a_program_shows_it_too(log: Log) -> None:
    for _ in range(100):
        log.event(after=0.5)
        log.beats(1)
    text = log.stamp(log.serial, BOOT_MS + log.now // 1_000_000 - HOUR_MS) + b"pid=7 msg='op=login'"
    log.add(EntryKind.RECORDS, pack_records([AuditRecord(1112, text)]))
    assert log.kinds() == [Kind.CLOCK]


def test_one_call_shows_a_clock_of_another_age(log: Log) -> None:
    for _ in range(3):
        log.event()
        log.beats(1)
    log.event(ms=BOOT_MS - 32 * 365 * 24 * HOUR_MS)
    assert log.kinds() == [Kind.CLOCK]
    assert log.analyse().findings.trouble


def test_the_kernel_saying_that_it_was_set_back_for_days_excuses_nothing(log: Log) -> None:
    for _ in range(100):
        log.event(after=0.5)
        log.beats(1)
    log.say(1332, b"sec=-864000 nsec=0")
    intent(log, 1, ms=-240 * HOUR_MS)
    (finding,) = log.findings()
    assert (finding.kind, finding.trouble) == (Kind.CLOCK, True)


def test_intents_that_waited_for_room_are_no_clock_that_went_back(log: Log) -> None:
    """A full log: nothing comes for an hour, then what waited, one by one, and some that fill it again."""
    for _ in range(100):
        log.event(after=0.5)
        log.beats(1)
    log.now += 3600 * NS
    for number in range(1, 9):
        intent(log, number, ms=-1000 * 3600)
    log.beats(3)
    log.now += 40 * NS
    intent(log, 9, ms=-1000 * 3644)
    assert log.kinds(silence=10_000) == []
    log.beats(80)
    intent(log, 10, ms=-1000 * 60)
    assert log.kinds(silence=10_000) == [Kind.CLOCK], "that gap is over"


def test_a_machine_that_stood_still(log: Log) -> None:
    for _ in range(100):
        log.event(after=0.5)
        log.beats(1)
    intent(log, 1, ms=-8000, after=8.0)
    log.beats(10)
    assert log.kinds(silence=10) == []


def test_what_began_before_the_clock_was_set(log: Log) -> None:
    """It claims a time of the clock before: calls, and an intent that another processor stamped just before."""
    start = BOOT_MS + log.now // 1_000_000
    for _ in range(100):
        log.event(after=0.5)
        log.beats(1)
    log.say(1332, b"sec=-7200 nsec=0")
    intent(log, 1, ms=-2 * HOUR_MS)
    log.event(ms=start)
    assert log.kinds() == [Kind.CLOCK], "and it did not go forward again"
    log.beats(80)
    said = log.stamp(log.serial, BOOT_MS + log.now // 1_000_000 - 2 * HOUR_MS) + b"sec=727200 nsec=0"
    log.add(EntryKind.RECORDS, pack_records([AuditRecord(1332, said)]))
    log.serial += 1
    intent(log, 2, ms=200 * HOUR_MS)
    intent(log, 3, ms=-2 * HOUR_MS)
    assert log.kinds() == [Kind.CLOCK, Kind.CLOCK]
    assert not log.analyse().findings.trouble
