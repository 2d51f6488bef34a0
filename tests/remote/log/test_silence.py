# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that say nothing: silent ones, ones that were not run, and ones that lie about it."""

from __future__ import annotations

import pytest

from tests.remote.log.audit_log import NS, Log
from veil.formats.log import TICK_NS, AuditState, EntryKind, Heartbeat, Silence
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.findings import FindingKind as Kind
from veil.remote.log.recording import LOADED_BY, PATIENCE

RULES = b"o" * 32 + b"-D\n-b 8192\n-a always,exit -F arch=b64 -S execve -k exec\n"


class Kernel(Log):
    """Its heartbeats have an account."""

    def __init__(self) -> None:
        super().__init__()
        self.ran_ns = 0
        self.audit = AuditState.ON
        self.rules = 0
        self.beat(after=7.0)

    def run(self, seconds: float) -> None:
        """Time in which it is run."""
        self.now += int(seconds * NS)
        self.ran_ns += int(seconds * NS)

    def stand(self, seconds: float) -> None:
        """Time in which the machine stands still."""
        self.now += int(seconds * NS)

    def beat(self, *, after: float = 1.0) -> None:
        self.run(after)
        self.add(EntryKind.HEARTBEAT, Heartbeat(self.audit, self.rules, self.ran_ns // TICK_NS).pack())

    def beats(self, seconds: int) -> None:
        for _ in range(seconds):
            self.beat()

    def told(self, quiet: float, awake: float) -> None:
        """The service's word."""
        self.add(EntryKind.SILENCE, Silence(int(quiet * NS), int(awake * NS)).pack())

    @property
    def last(self) -> int:
        return len(self.entries) - 1


@pytest.fixture
def kernel() -> Kernel:
    found = Kernel()
    found.beats(3)
    return found


def check(kernel: Kernel, words: str, *, trouble: bool, entry: int) -> None:
    """One finding, and what it means."""
    analysis = kernel.analyse()
    (finding,) = (item for item in analysis.findings.items if item.kind == Kind.SILENCE)
    assert words in finding.words
    assert (finding.trouble, finding.distrust, finding.entry) == (trouble, trouble, entry)
    first = analysis.findings.first_distrusted
    assert (first.distrusted_from if first is not None else None) == (entry + 1 if trouble else None)


def test_a_machine_that_was_not_run_is_a_note(kernel: Kernel) -> None:
    last = kernel.last
    kernel.stand(8)
    kernel.told(8, 0)
    kernel.beat(after=0.2)
    kernel.beats(3)
    check(kernel, "not run, or hardly; the services ran for 0.0 s of that", trouble=False, entry=last)


def test_a_kernel_that_was_silent_while_the_services_ran(kernel: Kernel) -> None:
    """Its own account is not asked."""
    last = kernel.last
    kernel.stand(8)
    kernel.told(8, 7)
    kernel.beat(after=0.2)
    check(kernel, "8.2 s until entry 6: the kernel was silent; the services ran for 7.0 s", trouble=True, entry=last)


def test_a_kernel_that_ran_by_its_own_account(kernel: Kernel) -> None:
    """Though the host did not run the services."""
    last = kernel.last
    kernel.run(8)
    kernel.told(8, 0)
    kernel.beat(after=0)
    check(kernel, "by its own count of timer interrupts it ran for 8.0 s", trouble=True, entry=last)


def test_a_kernel_that_lies_about_its_silence_while_the_host_is_honest(kernel: Kernel) -> None:
    """It counts nothing: the services were run all the same. With the host's help the lie is a note (docs/log.md)."""
    last = kernel.last
    kernel.stand(20)
    kernel.told(20, 18.5)
    kernel.beat(after=0)
    check(kernel, "the kernel was silent", trouble=True, entry=last)


@pytest.mark.parametrize("ran", [0.0, 4.0])
def test_records_end_a_silence_and_the_next_heartbeat_accounts_for_it(kernel: Kernel, ran: float) -> None:
    last = kernel.last
    kernel.run(ran)
    kernel.stand(4)
    kernel.told(4 + ran, 0)
    kernel.event()
    kernel.run(0.8)
    kernel.event()
    kernel.beat(after=0.1)
    check(kernel, "the machine was not run", trouble=False, entry=last) if ran else None
    assert kernel.kinds() == ([Kind.SILENCE] if ran else [])


def test_a_busy_second_beside_a_silence_does_not_count(kernel: Kernel) -> None:
    last = kernel.last
    for _ in range(40):
        kernel.run(0.1)
        kernel.event(after=0)
    last = kernel.last
    kernel.stand(6)
    kernel.told(6, 0)
    kernel.beat(after=0)
    check(kernel, "the machine was not run", trouble=False, entry=last)


def test_records_and_intents_are_signs_of_life(kernel: Kernel) -> None:
    for _ in range(4):
        kernel.run(4)
        kernel.event()
    kernel.beat()
    assert Kind.SILENCE not in kernel.kinds()


def test_distrust_begins_after_the_last_entry_before_the_silence(kernel: Kernel) -> None:
    kernel.event()
    kernel.event()
    last = kernel.last
    kernel.run(9)
    kernel.told(9, 8)
    kernel.beat(after=0)
    check(kernel, "the kernel was silent", trouble=True, entry=last)


def test_calls_that_waited_for_room(kernel: Kernel) -> None:
    """The service heard them: it says nothing of a silence."""
    last = kernel.last
    kernel.stand(60)
    kernel.beat(after=0)
    kernel.beats(2)
    check(kernel, "the log had no room", trouble=False, entry=last)


def test_a_driver_that_was_loaded_anew(kernel: Kernel) -> None:
    kernel.event()
    last = kernel.last
    kernel.ran_ns = 0
    kernel.beat()
    check(kernel, "went back from 40 to 4 with entry 6", trouble=True, entry=last)


def test_a_kernel_that_gives_no_account_any_more(kernel: Kernel) -> None:
    last = kernel.last
    kernel.stand(8)
    kernel.told(8, 0)
    kernel.add(EntryKind.HEARTBEAT)
    check(kernel, "the kernel was silent", trouble=True, entry=last)


def test_no_account_up_to_the_end(kernel: Kernel) -> None:
    last = kernel.last
    kernel.stand(8)
    kernel.told(8, 0)
    kernel.event()
    check(kernel, "the machine was not run", trouble=False, entry=last)


@pytest.mark.parametrize("awake", [None, 0.0, 5.0])
def test_silence_up_to_now(kernel: Kernel, awake: float | None) -> None:
    """Without a word of the service's nobody but the clock went on."""
    last = kernel.last
    kernel.stand(9)
    if awake is not None:
        kernel.told(9, awake)
    analysis = LogAnalysis()
    for entry in kernel.entries:
        analysis.feed(entry)
    analysis.silence(kernel.now + NS)
    (finding,) = analysis.findings.items
    assert (finding.kind, finding.entry, finding.trouble) == (Kind.SILENCE, last, awake == 5.0)


def test_a_note_of_a_silence_that_lasts_becomes_trouble(kernel: Kernel) -> None:
    """And is said no more often than that."""
    analysis = LogAnalysis()
    fed = 0

    def look() -> list[bool]:
        nonlocal fed
        for entry in kernel.entries[fed:]:
            analysis.feed(entry)
        fed = len(kernel.entries)
        analysis.silence(kernel.now)
        return [item.trouble for item in analysis.findings.items]

    kernel.stand(8)
    assert look() == [False]
    kernel.stand(2)
    assert look() == [False]
    kernel.told(15, 5)
    assert look() == [False, True]
    kernel.told(22, 10)
    assert look() == [False, True]
    kernel.beat()
    assert look() == [False, True]
    kernel.stand(8)
    assert look() == [False, True, False]
    kernel.told(9, 0)
    kernel.beat()
    assert look() == [False, True, False]


def test_heartbeats_that_are_none(kernel: Kernel) -> None:
    kernel.add(EntryKind.HEARTBEAT, b"nonsense", after=1)
    kernel.add(EntryKind.SILENCE, b"nonsense")
    assert kernel.kinds() == [Kind.UNREADABLE, Kind.UNREADABLE]


def test_from_where_nothing_is_believed_anyway_there_is_no_trouble(kernel: Kernel) -> None:
    moment = len(kernel.entries)
    kernel.run(8)
    kernel.told(8, 7)
    kernel.beat(after=0.2)
    for untrusted_from, trouble in ((None, 1), (moment + 1, 1), (moment, 0), (0, 0)):
        analysis = LogAnalysis(untrusted_from=untrusted_from)
        for entry in kernel.entries:
            analysis.feed(entry)
        assert analysis.findings.trouble == trouble


# Rules, and nothing recorded


def sent(kernel: Kernel, text: bytes = RULES) -> None:
    kernel.add(EntryKind.RULES, text)


def recording(kernel: Kernel) -> list[str]:
    found = kernel.findings()
    assert all(item.trouble and not item.distrust for item in found if item.kind == Kind.NOT_RECORDING)
    return [item.words for item in found if item.kind == Kind.NOT_RECORDING]


@pytest.mark.parametrize(
    ("loaded", "audit", "words"),
    [
        (1, AuditState.OFF, "it says that it has loaded them, and that its audit is off"),
        (1, AuditState.ON, "it says that it has loaded them, and that its audit is on"),
        (0, AuditState.OFF, "it does not say that it has loaded them"),
    ],
)
def test_rules_were_sent_and_nothing_is_recorded(loaded: int, audit: AuditState, words: str) -> None:
    kernel = Kernel()
    kernel.audit = AuditState.OFF
    kernel.beats(2)
    sent(kernel)
    kernel.rules, kernel.audit = loaded, audit
    kernel.beats((PATIENCE if loaded else LOADED_BY) - 1)
    assert recording(kernel) == []
    kernel.beats(1)
    assert recording(kernel) == [f"audit rules were sent with entry 4, and the kernel records nothing: {words}"]
    kernel.beats(3 * LOADED_BY)
    assert len(recording(kernel)) == 1


def test_rules_were_sent_and_something_is_recorded(kernel: Kernel) -> None:
    """Then there may be nothing to record for a long time."""
    kernel.audit = AuditState.OFF
    kernel.beats(1)
    sent(kernel)
    kernel.event()
    kernel.audit = AuditState.ON
    kernel.rules = 1
    kernel.beats(5 * LOADED_BY)
    assert recording(kernel) == []


@pytest.mark.parametrize("text", [b"-D\n", RULES + b"-e 0\n", RULES + b" -e0", b"# -a always\n-b 7"])
def test_rules_that_record_nothing(kernel: Kernel, text: bytes) -> None:
    sent(kernel, text)
    kernel.audit = AuditState.OFF
    kernel.beats(2 * LOADED_BY)
    assert recording(kernel) == []


def test_audit_that_is_off_without_a_word(kernel: Kernel) -> None:
    kernel.beats(1)
    kernel.audit = AuditState.OFF
    kernel.beats(2)
    (finding,) = kernel.findings()
    assert (finding.kind, finding.entry, finding.distrust) == (Kind.AUDIT_OFF, kernel.last - 1, True)


@pytest.mark.parametrize("asked", [False, True])
def test_audit_that_is_switched_off(kernel: Kernel, asked: bool) -> None:
    """An owner may want that."""
    if asked:
        sent(kernel, RULES + b"-e 0\n")
    kernel.say(1305, b"op=set audit_enabled=0 old=1 auid=0 ses=1 subj=unconfined res=1")
    kernel.audit = AuditState.OFF
    kernel.beats(2)
    found = [item for item in kernel.findings() if item.kind == Kind.AUDIT_OFF]
    assert [item.trouble for item in found] == [not asked]
