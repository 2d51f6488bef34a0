# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules were sent: does the kernel record anything?

It says in its heartbeats whether its audit is on, and which rules it was given last.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from veil.formats.log import AuditState, Heartbeat, LogEntry
from veil.remote.log.findings import FindingKind

__all__ = ["RecordingCheck"]

#: Heartbeats from a kernel that says that it has loaded the rules: loading makes records.
PATIENCE = 10
#: Heartbeats by which a kernel has loaded rules that were sent, even on a slow computer with other work.
LOADED_BY = 60
_RULES = (b"-a", b"-A", b"-w")

Report = Callable[[FindingKind, LogEntry, str, bool], None]


class RecordingCheck:
    """Fed with rules, records and heartbeats. `report(kind, entry, words, distrust)`; the entry is what shows it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sent: LogEntry | None = None  # rules that should make the kernel record, and have not yet
        self._beats = self._beats_loaded = 0  # since then, and since it says that it has loaded them
        self._before = 0  # the generation that was loaded when they were sent
        self._last: Heartbeat | None = None
        self._recorded = self._switched = False
        self.wants_off = False
        """an owner's rules say that audit is to be off"""

    def rules(self, entry: LogEntry, text: bytes) -> None:
        """An owner sent rules. With -e 0 among them no records are wanted."""
        lines = [line.split() for line in text.splitlines()]
        self.wants_off = any(map(_switches_off, lines))
        self._sent = entry if any(line[:1] and line[0] in _RULES for line in lines) and not self.wants_off else None
        self._beats = self._beats_loaded = 0
        self._recorded = False
        self._before = self._last.rules if self._last is not None else 0

    def record(self) -> None:
        """The kernel recorded something."""
        self._recorded = True

    def switched(self, *, on: bool) -> None:
        """A record says that audit was switched on or off."""
        self._switched = not on

    def beat(self, entry: LogEntry, account: Heartbeat) -> None:
        """A heartbeat."""
        before, self._last = self._last, account
        off = account.audit == AuditState.OFF
        if off and before is not None and before.audit != AuditState.OFF and not (self._switched or self.wants_off):
            words = "the kernel says that its audit is off, and no record says who switched it off"
            self._report(FindingKind.AUDIT_OFF, entry, words, True)
        if not off:
            self._switched = False
            if self._recorded:
                self._sent = None
        if self._sent is None:
            return
        self._beats += 1
        self._beats_loaded += account.rules != self._before
        if self._beats < LOADED_BY and self._beats_loaded < PATIENCE:
            return
        sent, self._sent = self._sent, None
        words = f"audit rules were sent with entry {sent.sequence}, and the kernel records nothing"
        if account.rules == self._before:
            words += ": it does not say that it has loaded them"
        elif off:
            words += ": it says that it has loaded them, and that its audit is off"
        else:
            words += ": it says that it has loaded them, and that its audit is on"
        self._report(FindingKind.NOT_RECORDING, entry, words, False)


def _switches_off(words: list[bytes]) -> bool:
    """Is this line of audit rules `-e 0`, alone or with other options?"""
    if words and words[0].startswith(b"#"):
        return False
    return b"-e0" in words or any(pair == (b"-e", b"0") for pair in itertools.pairwise(words))
