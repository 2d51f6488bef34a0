# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user is told of the words of VeilS-KCI in the log."""

from __future__ import annotations

import json

from veil.formats.kci import KCI_NUMBER
from veil.formats.kci_status import CodeEvent, CodeWord
from veil.formats.log import EntryKind, LogEntry, ServiceWord
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.export import entry_value
from veil.remote.log.findings import Finding, FindingKind


def _findings(*bodies: bytes) -> list[Finding]:
    analysis = LogAnalysis()
    analysis.feed(LogEntry(0, 0, EntryKind.STARTED, b"", b""))
    for number, body in enumerate(bodies, 1):
        analysis.feed(LogEntry(number, number, EntryKind.WORD, body, b""))
    return [
        item for item in analysis.findings.items if item.kind in (FindingKind.CODE_INTEGRITY, FindingKind.UNREADABLE)
    ]


def test_what_code_integrity_says_is_found() -> None:
    good = CodeWord(CodeEvent.LOCKED, "the kernel is locked down", {"return": 3})
    bad = CodeWord(CodeEvent.VIOLATION, "a write to KERNEL_CODE\n\x1b[2J", {"gpa": 4096})
    found = _findings(*(ServiceWord(KCI_NUMBER, word.pack()).pack() for word in (good, bad)))
    assert [(item.kind, item.trouble, item.distrust) for item in found] == [
        (FindingKind.CODE_INTEGRITY, False, False),
        (FindingKind.CODE_INTEGRITY, True, True),
    ]
    assert found[1].words.isprintable()
    value = entry_value(LogEntry(1, 1, EntryKind.WORD, ServiceWord(KCI_NUMBER, bad.pack()).pack(), b""))
    assert (value["event"], value["detail"]) == ("violation", {"gpa": 4096})
    assert json.dumps(value)


def test_words_that_nobody_can_read() -> None:
    wrong = [
        b"x",
        ServiceWord(KCI_NUMBER, b"{").pack(),
        ServiceWord(KCI_NUMBER, b'{"event": "x", "words": "y"}').pack(),
    ]
    assert [item.kind for item in _findings(*wrong)] == [FindingKind.UNREADABLE] * 3
    assert _findings(ServiceWord(99, b"anything").pack()) == []
    assert entry_value(LogEntry(1, 1, EntryKind.WORD, b"x", b""))["unreadable"] == "78"


def test_what_was_refused_is_listed_behind_many_modules() -> None:
    many = [CodeWord(CodeEvent.MODULE_ADMITTED, f"the module m{number} is admitted") for number in range(300)]
    locked = [CodeWord(CodeEvent.LOCKED, "the kernel is locked down")] * 300
    last = CodeWord(CodeEvent.MODULE_REFUSED, "a module is refused")
    found = _findings(*(ServiceWord(KCI_NUMBER, word.pack()).pack() for word in (*many, *locked, last)))
    assert (found[-1].words, found[-1].entry, found[-1].trouble, found[-1].distrust) == (last.words, 601, True, False)
    assert len(found) < 50
