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
    ledger = Ledger(lambda word: told.append(CodeWord.parse(word)))
    for number in range(1, 2001):
        ledger.tell(event, str(number))
    assert [int(word.words) for word in told] == [*range(1, 257), 512, 1024]
    assert (ledger.violations, ledger.refused) == ((2000, 0) if event is CodeEvent.VIOLATION else (0, 2000))
    assert list(ledger.words) == [str(number) for number in range(1969, 2001)]


def test_symbols_are_bounded() -> None:
    ledger = Ledger(lambda word: None)
    for number in range(5000):
        ledger.patched(Patch(number, "jump label", Step.FINISH), f"symbol_{number}")
    counts = ledger.patches["jump label"]
    assert counts["others"] == 904
    assert counts.total() == 5000


def test_a_snapshot_goes_on_counting() -> None:
    told: list[bytes] = []
    before, after = Ledger(lambda word: None), Ledger(told.append)
    for number in range(300):
        before.tell(CodeEvent.VIOLATION, str(number))
    after.load(json.loads(json.dumps(before.dump())))
    after.tell(CodeEvent.VIOLATION, "another")
    assert after.violations == 301
    assert not told
