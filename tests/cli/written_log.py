# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder with a log, as `veil logs fetch` leaves it."""

from __future__ import annotations

from pathlib import Path

from veil.formats.log import ENTRY_HEADER, AuditRecord, EntryKind, LogEntry, pack_records
from veil.formats.merkle import CompactRange, leaf_hash
from veil.remote.log.folder import LogFolder
from veil.remote.log.reader import LogState


def _entry(number: int, record: AuditRecord) -> LogEntry:
    body = pack_records([record])
    raw = ENTRY_HEADER.pack(number, 10**9 * (number + 1), EntryKind.RECORDS, len(body)) + body
    return LogEntry(number, 10**9 * (number + 1), EntryKind.RECORDS, body, raw)


def write_log(path: Path, *records: AuditRecord) -> None:
    """A fetched log with these records, an entry each."""
    entries = [_entry(number, record) for number, record in enumerate(records)]
    tree = CompactRange()
    for entry in entries:
        tree.append(leaf_hash(entry.raw))
    LogFolder(path).add(entries, LogState(b"key", tree))
