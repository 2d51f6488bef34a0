# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened: counted for the status, told to the protected log."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from veil.formats.kci_status import CodeEvent, CodeWord
from veil.services.context import Recorder
from veil.services.kci.patches import Patch
from veil.services.repetition import is_told

__all__ = ["Ledger"]

_MAX_SYMBOLS = 4096
_MAX_WORDS = 32
#: A kernel that tries again and again must not fill the log by it: from here on only each doubling is told.
_ALL_TOLD = 256
#: Modules that are told of whatever came and went before: the first time that they come and go.
_MAX_MODULES = 1024
#: That the same ones come and go again says little.
_AGAIN_TOLD = 16
_OTHERS = "others"
#: Characters of a line or a detail: a module's version can be as long as its file, and an entry must be fetched whole.
_MAX_TEXT = 1024


class Ledger:
    """Bounded: what a hostile kernel does without end is counted on, not kept."""

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._modules: dict[CodeEvent, set[str]] = {CodeEvent.MODULE_ADMITTED: set(), CodeEvent.MODULE_GONE: set()}
        """By event the hashes of those that it was told of."""
        self._again = dict.fromkeys(self._modules, 0)
        self.patches: dict[str, Counter[str]] = {}
        self.violations = 0
        self.refused = 0
        self.writes: dict[str, int] = {}
        """By symbol: stores to data that the policy lets the kernel write."""
        self.words: deque[str] = deque(maxlen=_MAX_WORDS)

    def patched(self, patch: Patch, symbol: str) -> None:
        """A store that was made."""
        counts = self.patches.setdefault(patch.kind, Counter())
        counts[symbol if symbol in counts or len(counts) < _MAX_SYMBOLS else _OTHERS] += 1

    def most_patched(self, symbols: int) -> dict[str, dict[str, int]]:
        """Stores by kind and symbol: of each kind the symbols with the most of them, and all others together."""
        return {kind: _most(counts, symbols) for kind, counts in self.patches.items()}

    def wrote(self, words: str, symbol: str, **detail: Any) -> None:
        """A store that was made to data of an exception. There are as many symbols as the policy names."""
        count = self.writes[symbol] = self.writes.get(symbol, 0) + 1
        if not is_told(count, _AGAIN_TOLD):
            return
        if count > _AGAIN_TOLD:
            words = f"{words} (the {count}th store there; of these each doubling is told)"
        self.tell(CodeEvent.EXCEPTION, words, symbol=symbol, **detail)

    def tell(self, event: CodeEvent, words: str, **detail: Any) -> None:
        """One line, in the log too. Of a module that comes or goes `hash` is a detail."""
        count, all_told = 0, _ALL_TOLD
        if event is CodeEvent.VIOLATION:
            count = self.violations = self.violations + 1
        elif event is CodeEvent.MODULE_REFUSED:
            count = self.refused = self.refused + 1
        elif event in self._modules:
            count, all_told = self._repeated(event, detail["hash"]), _AGAIN_TOLD
            if not is_told(count, all_told):
                return
        told = is_told(count, all_told)
        if told and count > all_told:
            words = f"{words} (the {count}th event of this kind; from here on each doubling is told)"
        words = words[:_MAX_TEXT]
        found = {name: value for name, value in detail.items() if value is not None}
        short = {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in found.items()}
        word = CodeWord(event, words, short)
        if word.trouble:
            self.words.append(words)
        if told:
            # Not modules that are refused: of these the kernel can have as many as it likes before its first violation.
            self._record(word.pack(), urgent=event in (CodeEvent.VIOLATION, CodeEvent.NOT_LOCKED))

    def _repeated(self, event: CodeEvent, module: str) -> int:
        """How often modules came (or went) that had done so before; 0 for one that had not."""
        known = self._modules[event]
        if module not in known and len(known) < _MAX_MODULES:
            known.add(module)
            return 0
        self._again[event] += 1
        return self._again[event]

    def dump(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "patches": self.patches,
            "violations": self.violations,
            "refused": self.refused,
            "writes": self.writes,
            "words": list(self.words),
            "modules": {event: sorted(known) for event, known in self._modules.items()},
            "again": self._again,
        }

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self.patches = {kind: Counter(counts) for kind, counts in state["patches"].items()}
        self.violations, self.refused = state["violations"], state["refused"]
        self.writes = dict(state["writes"])
        self.words.extend(state["words"])
        self._modules = {CodeEvent(event): set(known) for event, known in state["modules"].items()}
        self._again = {CodeEvent(event): count for event, count in state["again"].items()}


def _most(counts: Counter[str], symbols: int) -> dict[str, int]:
    if len(counts) <= symbols:
        return dict(counts)
    found = dict(counts.most_common(symbols))
    found[_OTHERS] = found.get(_OTHERS, 0) + counts.total() - sum(found.values())
    return found
