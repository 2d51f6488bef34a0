# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs as an honest kernel, or one that lies, would fill them."""

from __future__ import annotations

from veil.formats.log import ENTRY_HEADER, AuditRecord, EntryKind, Head, LogEntry, pack_records
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.findings import Finding
from veil.remote.log.findings import FindingKind as Kind

NS = 1_000_000_000


BOOT_MS = 1_700_000_000_000


class Log:
    """Entries, as an honest kernel makes them unless a test says otherwise."""

    def __init__(self, serial: int = 40) -> None:
        self.entries: list[LogEntry] = []
        self.now = NS
        self.serial = serial
        self.add(EntryKind.STARTED)

    def add(self, kind: EntryKind, body: bytes = b"", *, after: float = 0.0) -> None:
        self.now += int(after * NS)
        raw = ENTRY_HEADER.pack(len(self.entries), self.now, kind, len(body)) + body
        self.entries.append(LogEntry(len(self.entries), self.now, kind, body, raw))

    def stamp(self, serial: int, ms: int | None = None) -> bytes:
        ms = BOOT_MS + self.now // 1_000_000 if ms is None else ms
        return b"audit(%d.%03d:%d): " % (ms // 1000, ms % 1000, serial)

    def event(self, serial: int | None = None, *, after: float = 0.01, ms: int | None = None) -> None:
        if serial is None:
            serial = self.serial
            self.serial += 1
        self.now += int(after * NS)
        stamp = self.stamp(serial, ms)
        texts = (1300, b"arch=c000003e syscall=59"), (1307, b'cwd="/"'), (1320, b"")
        self.add(EntryKind.RECORDS, pack_records([AuditRecord(kind, stamp + text) for kind, text in texts]))

    def say(self, kind: int, text: bytes) -> None:
        self.add(EntryKind.RECORDS, pack_records([AuditRecord(kind, self.stamp(self.serial) + text)]), after=0.01)
        self.serial += 1

    def beats(self, seconds: int) -> None:
        for _ in range(seconds):
            self.add(EntryKind.HEARTBEAT, after=1.0)

    def analyse(self, *, later: float = 0.5, silence: float = 5) -> LogAnalysis:
        analysis = LogAnalysis(silence_ns=int(silence * NS))
        for entry in self.entries:
            analysis.feed(entry)
        now = self.now + int(later * NS)
        analysis.finish(Head(len(self.entries), 0, now, self.now, 0, bytes(32), b""))
        return analysis

    def findings(self, **options: float) -> list[Finding]:
        """All but the note that a log of this test has no signs of life in it."""
        items = self.analyse(**options).findings.items
        return [item for item in items if item.kind != Kind.NO_HEARTBEATS]

    def kinds(self, **options: float) -> list[Kind]:
        return [item.kind for item in self.findings(**options)]
