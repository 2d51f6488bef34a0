# SPDX-License-Identifier: GPL-2.0-or-later
"""What the analysis of a verified log says of kernels that are honest, busy, silent, or lie."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.remote.log.audit_log import BOOT_MS, NS, Log
from veil.formats.log import AuditRecord, EntryKind, Head, pack_records
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.findings import FindingKind as Kind
from veil.remote.log.findings import Findings, claimed_text
from veil.remote.log.serials import SETTLE_NS

assert SETTLE_NS < 80 * NS, "tests let 80 seconds pass"


@pytest.fixture
def log() -> Log:
    return Log()


def test_an_honest_kernel(log: Log) -> None:
    for _ in range(50):
        log.event()
        log.beats(1)
    analysis = log.analyse()
    assert analysis.findings.items == []
    assert (analysis.summary.entries, analysis.summary.records) == (101, 150)


def test_events_in_flight_come_out_of_order(log: Log) -> None:
    serials = list(range(500))
    randomly = random.Random(1)
    for at in range(0, 500, 10):
        part = serials[at : at + 10]
        randomly.shuffle(part)
        for serial in part:
            log.event(serial + 100)
    log.beats(80)
    assert log.kinds() == []


def test_a_call_whose_first_record_came_early(log: Log) -> None:
    """A record made on the way takes the number and the time of its call, whose end may come much later."""
    start = BOOT_MS + log.now // 1_000_000
    log.serial += 1
    log.add(EntryKind.RECORDS, pack_records([AuditRecord(1400, log.stamp(40, start) + b"avc")]))
    for _ in range(100):
        log.event(after=0.1)
        log.beats(1)
    log.event(40, ms=start)
    assert log.kinds() == []


def test_a_missing_number(log: Log) -> None:
    log.event()
    log.serial += 1
    log.event()
    gap = len(log.entries) - 1
    log.beats(1)
    assert log.kinds() == [Kind.IN_FLIGHT]
    assert log.analyse().findings.trouble == 0
    log.beats(80)
    (finding,) = log.findings()
    assert (finding.kind, finding.entry, finding.trouble) == (Kind.MISSING, gap, True)
    assert "number 41 is missing" in finding.words
    assert log.analyse().findings.first_distrusted == finding


def test_a_late_number_is_not_missing(log: Log) -> None:
    log.event(40)
    log.event(43)
    log.event(42)
    log.beats(2)
    log.event(41)
    log.event(44)
    log.beats(80)
    assert log.kinds() == []


def test_a_number_that_comes_very_late(log: Log) -> None:
    log.event(40)
    log.event(42)
    log.beats(20)
    log.event(41)
    log.beats(80)
    (finding,) = log.findings()
    assert (finding.kind, finding.entry, finding.trouble) == (Kind.LATE, 23, False)
    assert "number 41 came 20.0 s after one behind it" in finding.words


def test_what_was_dropped_explains_so_many_numbers(log: Log) -> None:
    log.event()
    log.serial += 3
    log.add(EntryKind.DROPPED, (3).to_bytes(8, "little"))
    log.event()
    log.beats(80)
    assert log.kinds() == [Kind.DROPPED]
    assert log.analyse().findings.first_distrusted is None
    log.serial += 1
    log.event()
    log.beats(80)
    assert log.kinds() == [Kind.DROPPED, Kind.MISSING]


def test_dropped_and_not_told_yet(log: Log) -> None:
    log.event()
    log.add(EntryKind.DROPPED, (3).to_bytes(8, "little"))
    log.event()
    analysis = LogAnalysis()
    for entry in log.entries:
        analysis.feed(entry)
    analysis.finish(Head(len(log.entries), 0, log.now, log.now, 5, bytes(32), b""))
    said = [item.words for item in analysis.findings.items if item.kind == Kind.DROPPED]
    assert said == [
        "3 calls of the kernel found no room before this entry",
        "2 calls of the kernel found no room after the last entry",
    ]


def test_fewer_were_dropped_than_are_missing(log: Log) -> None:
    log.event()
    log.serial += 4
    log.add(EntryKind.DROPPED, (3).to_bytes(8, "little"))
    log.event()
    log.beats(80)
    assert log.kinds() == [Kind.DROPPED, Kind.MISSING]


@pytest.mark.parametrize(
    ("serials", "kinds"),
    [
        ((40, 41, 41), [Kind.REPEATED]),
        ((40, 41, 42, 40), [Kind.REPEATED]),
        ((2000, 2001, 7), [Kind.WENT_BACK]),
    ],
)
def test_numbers_that_repeat_or_go_back(log: Log, serials: Iterable[int], kinds: list[Kind]) -> None:
    for serial in serials:
        log.event(serial)
    assert log.kinds() == kinds
    assert log.analyse().findings.trouble == 1


def test_two_calls_of_one_number_and_time(log: Log) -> None:
    log.event(40, ms=BOOT_MS)
    log.event(40, ms=BOOT_MS)
    assert log.kinds() == [Kind.REPEATED]


def test_numbers_wrap(log: Log) -> None:
    for serial in (0xFFFFFFFE, 0xFFFFFFFF, 0, 1, 2):
        log.event(serial)
    log.beats(80)
    assert log.kinds() == []


def test_a_kernel_that_makes_up_numbers_costs_no_memory(log: Log) -> None:
    randomly = random.Random(2)
    analysis = LogAnalysis()
    for _ in range(20000):
        log.event(randomly.randrange(1 << 32))
        analysis.feed(log.entries[-1])
    assert analysis.findings.trouble > 5000
    assert len(analysis.findings.items) < 500
    assert sum(more for _, more in analysis.findings.unlisted()) + len(analysis.findings.items) == sum(
        analysis.findings.counts.values()
    )


def test_a_kernel_that_fills_every_other_number_costs_no_memory(log: Log) -> None:
    analysis = LogAnalysis()
    for serial in (1, 1 << 20, *range(3, 10000, 2)):
        log.event(serial, after=0)
        analysis.feed(log.entries[-1])
    assert len(analysis._serials._gaps) < 2000
    assert analysis.findings.counts[Kind.MISSING] > 3000


def test_silence_between_entries_and_at_the_end(log: Log) -> None:
    log.beats(3)
    last = len(log.entries) - 1
    log.now += 20 * NS
    log.beats(3)
    (finding,) = log.findings()
    assert (finding.kind, finding.entry, finding.distrusted_from) == (Kind.SILENCE, last, last + 1)
    assert "21.0 s until entry 4" in finding.words
    assert log.kinds(later=60) == [Kind.SILENCE, Kind.SILENCE]
    assert log.kinds(silence=30) == []


def test_records_are_signs_of_life_too(log: Log) -> None:
    """That the heartbeats stay away is noted, once."""
    log.beats(2)
    for _ in range(10):
        log.event(after=1.0)
    assert [item.kind for item in log.analyse().findings.items] == [Kind.NO_HEARTBEATS]
    assert log.analyse().findings.trouble == 0
    log.beats(1)
    for _ in range(20):
        log.event(after=1.0)
    assert [item.kind for item in log.analyse().findings.items] == [Kind.NO_HEARTBEATS] * 2


def test_silence_while_it_was_not_there(log: Log) -> None:
    log.beats(3)
    log.now += 60 * NS
    log.add(EntryKind.RESUMED, bytes(32))
    log.beats(3)
    assert log.kinds() == [Kind.RESUMED]


def test_silence_is_told_once_and_again_after_the_next_beat(log: Log) -> None:
    analysis = LogAnalysis()
    log.beats(2)
    for entry in log.entries:
        analysis.feed(entry)
    for seconds in (2, 8, 9, 10):
        analysis.silence(log.now + seconds * NS)
    assert [item.kind for item in analysis.findings.items] == [Kind.SILENCE]


def test_no_heart(log: Log) -> None:
    log.event()
    analysis = log.analyse(later=1000)
    assert [item.kind for item in analysis.findings.items] == [Kind.NO_HEARTBEATS]
    assert analysis.findings.trouble == 0


def test_audit_off(log: Log) -> None:
    log.event()
    log.say(1305, b"op=set audit_enabled=0 old=1 auid=0 ses=1 subj=unconfined res=1")
    (finding,) = log.findings()
    assert (finding.kind, finding.trouble, finding.entry) == (Kind.AUDIT_OFF, True, 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"op=set audit_enabled=0 old=2 auid=0 ses=1 res=0", Kind.RULES),
        (b"op=set audit_enabled=2 old=1 auid=0 ses=1 res=1", Kind.AUDIT_ON),
        (b"op=set audit_rate_limit=1 old=0 auid=0 ses=1 res=1", Kind.RULES),
        (b"auid=0 ses=1 op=remove_rule key=(null) list=4 res=1", Kind.RULES),
    ],
)
def test_changed_settings(log: Log, text: bytes, kind: Kind) -> None:
    log.say(1305, text)
    (finding,) = log.findings()
    assert (finding.kind, finding.trouble) == (kind, False)


DIGITS = b"9" * 4301
"""more than Python makes a number of"""


@pytest.mark.parametrize(
    "text",
    [
        b"audit(1700000000.000:1): op=set audit_enabled=" + DIGITS + b" old=1 res=1",
        b"audit(1700000000.000:1): op=set audit_enabled=0 old=" + DIGITS + b" res=1",
        b"audit(1700000000.000:1): op=set audit_" + b"x" * 50_000 + b"=0 old=1 res=1",
        b"audit(1700000000.000:" + DIGITS + b"): x",
        b"audit(" + DIGITS + b".000:1): x",
        b"audit(1700000000." + DIGITS + b":1): x",
        b"\x1b[2J\nverified",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_a_record_that_no_kernel_makes_is_a_finding(log: Log, text: bytes) -> None:
    log.beats(1)
    log.add(EntryKind.RECORDS, pack_records([AuditRecord(1305, text)]))
    log.beats(1)
    (finding,) = log.findings()
    assert (finding.kind, finding.trouble) == (Kind.UNREADABLE, True)
    assert finding.words.isprintable()
    assert len(finding.words) < 300


PIECES = (
    b"audit(1700000000.000:1): ", b"op=set audit_a=1 old=1 ", b"op=set ", b"op=add_rule ", b" res=1", b" res=", DIGITS,
    b"veil-intent op=module comm=", b"pid=1 msg='veil-intent op=module comm=\"x\" ", b"'", b"\x1b[2J", b"\n", b"\xff",
    b"audit(99999999999999999999.999:4294967295): ", b"audit(0.000:0): ",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)
KINDS = st.sampled_from((EntryKind.RECORDS, EntryKind.INTENT, EntryKind.HEARTBEAT))


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.tuples(KINDS, st.sampled_from((1112, 1121, 1300, 1305, 1332)), TEXTS), max_size=6))
def test_whatever_records_say_the_analysis_has_lines_of_it(records: list[tuple[EntryKind, int, bytes]]) -> None:
    log = Log()
    for entry_kind, kind, text in records:
        log.add(entry_kind, pack_records([AuditRecord(kind, text)]), after=1.0)
    for finding in log.findings():
        assert finding.words.isprintable()
        assert len(finding.words) < 500
        assert claimed_text(finding.claimed_ms)


def test_nonsense(log: Log) -> None:
    log.add(EntryKind.RECORDS, b"nonsense")
    log.add(EntryKind.RECORDS, pack_records([AuditRecord(1300, b"no stamp")]))
    assert log.kinds() == [Kind.UNREADABLE, Kind.UNREADABLE]
    assert log.analyse().summary.unreadable == 1


def test_the_machines_time_goes_back(log: Log) -> None:
    log.beats(9)
    log.now -= 3 * NS
    log.beats(1)
    assert log.kinds() == [Kind.MACHINE_TIME]


def test_intents_have_numbers_of_their_own(log: Log) -> None:
    for number in (1, 2, 4):
        log.event()
        stamp = log.stamp(0x80000000 + number)
        log.add(EntryKind.INTENT, pack_records([AuditRecord(1121, stamp + b"pid=7 msg='veil-intent op=exec'")]))
    last = len(log.entries) - 1
    log.beats(80)
    (finding,) = log.findings()
    assert (finding.kind, finding.entry) == (Kind.MISSING, last)
    assert finding.words.startswith("intent 2147483651 is missing")


def test_a_dropped_call_explains_only_one_number(log: Log) -> None:
    log.event()
    log.add(EntryKind.INTENT, pack_records([AuditRecord(1121, log.stamp(0x80000001) + b"pid=7")]))
    log.serial += 1
    log.add(EntryKind.DROPPED, (1).to_bytes(8, "little"))
    log.event()
    log.add(EntryKind.INTENT, pack_records([AuditRecord(1121, log.stamp(0x80000003) + b"pid=7")]))
    log.beats(80)
    assert sorted(kind.value for kind in log.kinds()) == ["dropped", "missing"]


def test_rules_are_noted(log: Log) -> None:
    log.add(EntryKind.RULES, b"o" * 32 + b"-w /etc")
    (finding,) = log.findings()
    assert (finding.kind, finding.trouble) == (Kind.RULES, False)


def test_who_comes_late(log: Log) -> None:
    log.event()
    log.event()
    log.beats(1)
    log.entries = log.entries[2:]
    assert log.kinds() == [Kind.BEGINS_LATE]


def test_the_earliest_reason_to_distrust_counts(log: Log) -> None:
    """A gap is known late; it began where it began."""
    log.event()
    log.serial += 1
    log.event()
    log.beats(3)
    log.event(40)
    log.beats(80)
    found: Findings = log.analyse().findings
    assert [item.kind for item in found.items] == [Kind.REPEATED, Kind.MISSING]
    assert found.first_distrusted is not None
    assert found.first_distrusted.entry == 2


def test_claimed_times_are_the_kernels() -> None:
    assert claimed_text(BOOT_MS) == "2023-11-14 22:13:20.000 UTC"
    assert claimed_text(None) == "-"
    assert claimed_text(10**23).endswith(" ms")


@given(data=st.data(), count=st.integers(20, 120), vcpus=st.integers(1, 6))
@settings(max_examples=examples(60), deadline=None)
def test_exactly_what_is_missing_is_found(data: st.DataObject, count: int, vcpus: int) -> None:
    """However VCPUs overtake each other: no event too few, none too many."""
    log = Log()
    waiting: list[int] = []
    # The first one to come and the last one of all tell nobody that something was before or after.
    lost = data.draw(st.sets(st.integers(1, count - 2)))
    for serial in range(count):
        waiting.append(serial)
        while len(waiting) >= vcpus:
            at = 0 if serial < vcpus else data.draw(st.integers(0, len(waiting) - 1))
            number = waiting.pop(at)
            if number not in lost:
                log.event(number + 1000)
    for number in waiting:
        if number not in lost or number == count - 1:
            log.event(number + 1000)
    log.beats(80)
    found: set[int] = set()
    for item in log.findings():
        assert item.kind == Kind.MISSING
        numbers = [int(word) for word in re.findall(r"\d{4}", item.words)]
        found |= set(range(numbers[0], numbers[-1] + 1))
    assert found == {number + 1000 for number in lost}
