# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests print is read, and compared with what is known of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_unit_tests.expected import Known, KnownEnd, KnownFailure
from kvm_unit_tests.judgement import judge
from kvm_unit_tests.output import End, Outcome, Verdict, is_dump_complete, read_output

_PRINTED = b"""\x1b[2J\x1b[001;001Henabling apic\r
PASS: first: one\r
FAIL: first: two \r
SKIP: three\r
XFAIL: four\r
KFAIL: five\r
a line with FAIL: in it\r
SUMMARY: 5 tests, 1 unexpected failures\r
"""
_DUMP = (
    b"PASS: one\r\n!!!! X64 Exception Type - 0D(#GP - General Protection)  CPU Apic ID - 00000000 !!!!\r\n"
    b"RIP  - 000000001CACB0AD\r\n"
)
_DUMP_END = b"!!!! Find image based on IP(0x1CACB0AD) (No PDB)  (ImageBase=1, EntryPoint=2) !!!!\r\n"

_KNOWN = Known((KnownFailure("first: t.o", "for a reason"),))
_NO_END = Known(no_end=KnownEnd(End.UNHANDLED, "13 .*", "no register"))
_SILENT = Known(says_nothing="no such CPU")
_PASS, _SKIP = ((Verdict.PASS, "it"),), ((Verdict.SKIP, "it"),)


def test_lines_have_their_verdict() -> None:
    outcome = read_output(_PRINTED, End.EXITED, 1)
    assert outcome.passed == ["first: one", "four"]
    assert outcome.failed == ["first: two"]
    assert outcome.skipped == ["three", "five"]
    assert outcome.texts(Verdict.KFAIL) == ["five"]


def test_an_exception_without_a_handler() -> None:
    assert not is_dump_complete(_DUMP)
    assert is_dump_complete(_DUMP + _DUMP_END)
    outcome = read_output(_DUMP, End.TIMEOUT)
    assert (outcome.end, outcome.why, outcome.passed) == (End.UNHANDLED, "#GP - General Protection", ["one"])
    assert read_output(b"", End.EXITED, 63).end is End.ABORTED
    twice = b"Unhandled exception 13 #GP(0) at ip 0\r\nUnhandled exception 14 #PF(0) at ip 9\r\n"
    assert read_output(twice, End.EXITED, 63).why == "13 #GP(0) at ip 0"
    assert read_output(twice, End.EXITED, 1).end is End.EXITED


@given(st.binary())
def test_whatever_is_printed(output: bytes) -> None:
    assert read_output(output, End.TIMEOUT).end in (End.TIMEOUT, End.UNHANDLED)


def test_a_known_failure_is_as_expected() -> None:
    judgement = judge(read_output(_PRINTED, End.EXITED, 1), _KNOWN)
    assert judgement.as_expected
    assert (judgement.known_failures, judgement.reasons) == (1, ("for a reason",))


@pytest.mark.parametrize(
    ("outcome", "known", "surprise"),
    [
        (read_output(_PRINTED, End.EXITED, 1), Known(), "FAIL: first: two"),
        (read_output(b"XPASS: it\n", End.EXITED, 0), Known(), "FAIL: it"),
        (Outcome(End.EXITED, 0, lines=_PASS), _KNOWN, "it is known to fail, and did not: first: t.o"),
        (Outcome(End.EXITED, 3, lines=_PASS), Known(), "exit status 3"),
        (Outcome(End.TIMEOUT), Known(), "it did not end in time"),
        (Outcome(End.GUEST, why="triple fault"), Known(), "the guest ended: triple fault"),
        (Outcome(End.UNBUILT, why="an error"), _KNOWN, "its program could not be built: an error"),
        (
            Outcome(End.UNHANDLED, why="14 #PF(0) at ip 9"),
            _NO_END,
            "an exception that it has no handler for: 14 #PF(0) at ip 9; it is known to end otherwise: no register",
        ),
        (
            Outcome(End.TIMEOUT),
            _NO_END,
            "it did not end in time; it is known to end otherwise: no register",
        ),
        (
            Outcome(End.EXITED, 0, lines=_PASS),
            _NO_END,
            "it gave an exit status; it is known to end otherwise: no register",
        ),
        (Outcome(End.EXITED, 38, lines=_SKIP), Known(), "nothing passed, and nothing failed: it"),
        (Outcome(End.EXITED, 0), Known(), "nothing passed, and nothing failed"),
        (
            Outcome(End.EXITED, 0, lines=_PASS),
            _SILENT,
            "it is known to pass and to fail nothing, and did: no such CPU",
        ),
    ],
)
def test_surprises(outcome: Outcome, known: Known, surprise: str) -> None:
    judgement = judge(outcome, known)
    assert not judgement.as_expected
    assert judgement.surprises == (surprise,)


def test_a_failure_that_depends_on_time_may_be_missing() -> None:
    known = Known((KnownFailure("first: t.o", "for a reason", always=False),))
    assert judge(Outcome(End.EXITED, 0, lines=_PASS), known).as_expected
    assert judge(read_output(_PRINTED, End.EXITED, 1), known).reasons == ("for a reason",)


def test_a_known_end() -> None:
    judgement = judge(Outcome(End.UNHANDLED, why="13 #GP(0) at ip 9", lines=_PASS), _NO_END)
    assert judgement.as_expected
    assert judgement.reasons == ("no register",)


def test_a_test_that_finds_nothing_to_try() -> None:
    judgement = judge(read_output(b"SKIP: no such CPU\n", End.EXITED, 38), _SILENT)
    assert judgement.as_expected
    assert judgement.reasons == ("no such CPU",)
