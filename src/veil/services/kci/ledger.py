# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened: counted for the status, told to the protected log."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from veil.formats.kci_status import CodeEvent, CodeWord
from veil.services.kci.patches import Patch

__all__ = ["Ledger"]

_MAX_SYMBOLS = 4096
_MAX_WORDS = 32
#: A kernel that tries again and again must not fill the log by it: from here on only each doubling is told.
_ALL_TOLD = 256
_OTHERS = "others"


class Ledger:
    """Bounded: what a hostile kernel does without end is counted on, not kept."""

    def __init__(self, record: Callable[[bytes], None]) -> None:
        self._record = record
        self.patches: dict[str, Counter[str]] = {}
        self.violations = 0
        self.refused = 0
        self.words: deque[str] = deque(maxlen=_MAX_WORDS)

    def patched(self, patch: Patch, symbol: str) -> None:
        """A store that was made."""
        counts = self.patches.setdefault(patch.kind, Counter())
        counts[symbol if symbol in counts or len(counts) < _MAX_SYMBOLS else _OTHERS] += 1

    def tell(self, event: CodeEvent, words: str, **detail: Any) -> None:
        """One line, in the log too."""
        word = CodeWord(event, words, {name: value for name, value in detail.items() if value is not None})
        count = 0
        if event is CodeEvent.VIOLATION:
            count = self.violations = self.violations + 1
        elif event is CodeEvent.MODULE_REFUSED:
            count = self.refused = self.refused + 1
        if word.trouble:
            self.words.append(words)
        if count <= _ALL_TOLD or count & (count - 1) == 0:
            self._record(word.pack())

    def dump(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "patches": self.patches,
            "violations": self.violations,
            "refused": self.refused,
            "words": list(self.words),
        }

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self.patches = {kind: Counter(counts) for kind, counts in state["patches"].items()}
        self.violations, self.refused = state["violations"], state["refused"]
        self.words.extend(state["words"])
