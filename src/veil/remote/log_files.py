# SPDX-License-Identifier: GPL-2.0-or-later
"""A log that was fetched, in a folder: entries as they came, the verified state, and text for the standard tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from veil.formats.audit_types import type_name
from veil.formats.errors import FormatError
from veil.formats.log import EntryKind, LogEntry, parse_entries, parse_records
from veil.formats.merkle import CompactRange, leaf_hash
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.log import LogState

__all__ = ["LogFolder", "LogSummary", "audit_lines"]

_ENTRIES, _STATE, _AUDIT = "entries.bin", "state.json", "audit.log"
_CHUNK = 1 << 20
_FROM_THE_KERNEL = (EntryKind.RECORDS, EntryKind.INTENT, EntryKind.HEARTBEAT)


def audit_lines(entry: LogEntry) -> Iterator[bytes]:
    """An entry's records as auditd would have written them; nothing for the service's own words.

    Records are the kernel's, and so whoever took it over may choose their bytes: line ends in them are made visible.
    """
    if entry.kind not in _FROM_THE_KERNEL:
        return
    try:
        records = parse_records(entry.body)
    except FormatError:
        return
    for record in records:
        text = record.text.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\0", b"\\0")
        yield f"type={type_name(record.type)} msg=".encode() + text + b"\n"


@dataclass
class LogSummary:
    """What is in the folder."""

    entries: int = 0
    records: int = 0
    unreadable: int = 0
    """entries whose body is no records: the kernel sent nonsense"""
    resumed: int = 0
    dropped: int = 0
    first_ns: int = 0
    last_ns: int = 0


class LogFolder:
    """One folder for one log. Everything in it was verified before it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self) -> LogState | None:
        """What was verified so far; None for a new folder. Raises RemoteError."""
        place = self.path / _STATE
        if not place.exists():
            return None
        try:
            return LogState.load(json.loads(place.read_bytes()))
        except (OSError, ValueError, FormatError) as error:
            raise RemoteError(f"{place} is unusable: {error}") from error

    def add(self, entries: Iterable[LogEntry], state: LogState) -> int:
        """Append verified entries, then the state that they lead to; returns how many."""
        count = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._cut_to_state()
            with open(self.path / _ENTRIES, "ab") as raw, open(self.path / _AUDIT, "ab") as text:
                for entry in entries:
                    raw.write(entry.raw)
                    text.writelines(audit_lines(entry))
                    count += 1
            temporary = self.path / f".{_STATE}.tmp"
            sizes = {"entries_bytes": self._size(_ENTRIES), "audit_bytes": self._size(_AUDIT)}
            temporary.write_text(json.dumps({**state.dump(), **sizes}, indent=1))
            os.replace(temporary, self.path / _STATE)
        except OSError as error:
            raise RemoteError(f"cannot write into {self.path}: {error.strerror}") from error
        return count

    def _size(self, name: str) -> int:
        try:
            return (self.path / name).stat().st_size
        except FileNotFoundError:
            return 0

    def _cut_to_state(self) -> None:
        """What an interrupted run left behind the state is fetched again."""
        place = self.path / _STATE
        sizes = json.loads(place.read_bytes()) if place.exists() else {}
        for name, key in ((_ENTRIES, "entries_bytes"), (_AUDIT, "audit_bytes")):
            if self._size(name) > int(sizes.get(key, 0)):
                os.truncate(self.path / name, int(sizes.get(key, 0)))

    def entries(self) -> Iterator[LogEntry]:
        """The entries in the folder. Raises RemoteError, FormatError."""
        state = self.known()
        if state is None:
            return
        try:
            data = (self.path / _ENTRIES).read_bytes()
        except OSError as error:
            raise RemoteError(f"cannot read {self.path / _ENTRIES}: {error.strerror}") from error
        yield from parse_entries(data)

    def verify(self) -> LogSummary:
        """Hash everything anew and compare with the state. Raises VerificationFailed."""
        state = self.known()
        if state is None:
            raise RemoteError(f"there is no log in {self.path}")
        summary = LogSummary()
        tree: CompactRange | None = None
        for entry in self.entries():
            if tree is None:
                if entry.sequence:
                    raise RemoteError(f"the log in {self.path} begins at entry {entry.sequence}, not at its beginning")
                tree = CompactRange()
            if entry.sequence != tree.size:
                raise VerificationFailed(f"entry {entry.sequence} lies where {tree.size} should: the file was changed")
            tree.append(leaf_hash(entry.raw))
            _count(summary, entry)
        root = tree.root() if tree is not None else CompactRange().root()
        if root != state.tree.root() or (tree.size if tree is not None else 0) != state.tree.size:
            raise VerificationFailed(f"the entries in {self.path} were changed: they are not those that were verified")
        return summary


def _count(summary: LogSummary, entry: LogEntry) -> None:
    summary.entries += 1
    summary.first_ns = summary.first_ns or entry.time_ns
    summary.last_ns = entry.time_ns
    if entry.kind == EntryKind.RESUMED:
        summary.resumed += 1
    elif entry.kind == EntryKind.DROPPED:
        summary.dropped += int.from_bytes(entry.body, "little")
    elif entry.kind in _FROM_THE_KERNEL:
        try:
            summary.records += len(parse_records(entry.body))
        except FormatError:
            summary.unreadable += 1
