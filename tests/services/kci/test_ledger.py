# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened is counted; a kernel that tries again and again does not fill the log by it."""

from __future__ import annotations

import json

import pytest

from veil.formats.kci_status import CodeEvent, CodeWord
from veil.services.kci.ledger import Ledger
from veil.services.kci.patches import Patch, Step


@pytest.mark.parametrize("event", [CodeEvent.VIOLATION, CodeEvent.MODULE_REFUSED])
def test_each_doubling_is_told(event: CodeEvent) -> None:
    told: list[CodeWord] = []
    ledger = Ledger(lambda word, *, urgent=False: told.append(CodeWord.parse(word)))
    for number in range(1, 2001):
        ledger.tell(event, str(number))
    assert [int(word.words.partition(" ")[0]) for word in told] == [*range(1, 257), 512, 1024]
    assert "the 1024th event of this kind" in told[-1].words
    assert (ledger.violations, ledger.refused) == ((2000, 0) if event is CodeEvent.VIOLATION else (0, 2000))
    assert list(ledger.words) == [str(number) for number in range(1969, 2001)]


def _come_and_go(ledger: Ledger, module: str) -> None:
    for event in (CodeEvent.MODULE_ADMITTED, CodeEvent.MODULE_GONE):
        ledger.tell(event, f"{module} {event}", hash=module)


def test_modules_that_come_and_go_without_end_do_not_fill_the_log() -> None:
    told: list[CodeWord] = []
    ledger = Ledger(lambda word, *, urgent=False: told.append(CodeWord.parse(word)))
    for _ in range(5000):
        _come_and_go(ledger, "loop")
    assert len(told) == 2 * (1 + 16 + 8)
    assert told[-1].words == ("loop module gone (the 4096th event of this kind; from here on each doubling is told)")
    # What happens for the first time is told, whatever went on before.
    _come_and_go(ledger, "llc")
    assert [word.detail["hash"] for word in told[-2:]] == ["llc", "llc"]
    ledger.tell(CodeEvent.VIOLATION, "a violation")
    assert told[-1].words == "a violation"
    # Nor do many different ones.
    before = len(told)
    for number in range(3000):
        _come_and_go(ledger, str(number))
    assert len(told) - before < 2 * (1024 + 16)


def test_violations_are_urgent() -> None:
    found: list[bool] = []

    def record(_: bytes, /, *, urgent: bool = False) -> None:
        found.append(urgent)

    ledger = Ledger(record)
    ledger.tell(CodeEvent.MODULE_ADMITTED, "one", hash="1")
    ledger.tell(CodeEvent.VIOLATION, "two")
    ledger.tell(CodeEvent.MODULE_REFUSED, "three")
    ledger.tell(CodeEvent.NOT_LOCKED, "four")
    assert found == [False, True, False, True]


def test_symbols_are_bounded() -> None:
    ledger = Ledger(lambda word, *, urgent=False: None)
    for number in range(5000):
        ledger.patched(Patch(number, "jump label", Step.FINISH), f"symbol_{number}")
    counts = ledger.patches["jump label"]
    assert counts["others"] == 904
    assert counts.total() == 5000


def test_a_snapshot_goes_on_counting() -> None:
    told: list[bytes] = []
    before, after = Ledger(lambda word, *, urgent=False: None), Ledger(lambda word, *, urgent=False: told.append(word))
    for number in range(300):
        before.tell(CodeEvent.VIOLATION, str(number))
        _come_and_go(before, "loop")
    after.load(json.loads(json.dumps(before.dump())))
    after.tell(CodeEvent.VIOLATION, "another")
    _come_and_go(after, "loop")
    assert after.violations == 301
    assert not told
    _come_and_go(after, "llc")
    assert len(told) == 2


def test_what_a_module_says_of_itself_is_cut() -> None:
    """An entry that is longer than an answer could not be fetched, nor any behind it."""
    told: list[bytes] = []
    ledger = Ledger(lambda word, *, urgent=False: told.append(word))
    long = "9" * (1 << 20)
    ledger.tell(CodeEvent.MODULE_ADMITTED, f"the module a {long} is admitted", hash="1", version=long, vcpu=1 << 63)
    ledger.tell(CodeEvent.MODULE_REFUSED, long)
    assert max(map(len, told)) < 16 << 10
    word = CodeWord.parse(told[0])
    assert word.words.startswith("the module a 999")
    assert word.detail["vcpu"] == 1 << 63
    assert max(map(len, ledger.words)) < 16 << 10


def test_symbols_with_the_most_patches() -> None:
    ledger = Ledger(lambda word, *, urgent=False: None)
    for symbol, count in {"a": 3, "b": 1, "c": 2, "others": 5, "d": 1}.items():
        for _ in range(count):
            ledger.patched(Patch(0, "jump label", Step.SAME), symbol)
    assert ledger.most_patched(5) == {"jump label": {"a": 3, "b": 1, "c": 2, "others": 5, "d": 1}}
    assert ledger.most_patched(2) == {"jump label": {"others": 9, "a": 3}}
    assert ledger.most_patched(1) == {"jump label": {"others": 12}}
