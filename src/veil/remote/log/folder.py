# SPDX-License-Identifier: GPL-2.0-or-later
"""A log that was fetched, in a folder: entries as they came, the verified state, and text for the standard tools."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veil.errors import describe
from veil.formats.errors import FormatError
from veil.formats.log import EntryKind, LogEntry, parse_records, read_entries
from veil.formats.merkle import leaf_hash
from veil.formats.numbers import u64
from veil.private_files import make_folder, open_own, write_private
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.log.audit_lines import WITH_RECORDS, audit_lines
from veil.remote.log.reader import LogState, check_head

__all__ = ["LogFolder", "LogSummary", "locked", "opened", "replace_file", "write_all"]

_ENTRIES, _STATE, _AUDIT, _LOCK = "entries.bin", "state.json", "audit.log", ".lock"
_FLUSH = 1 << 20


@dataclass
class LogSummary:
    """What is in the folder."""

    entries: int = 0
    records: int = 0
    unreadable: int = 0
    """entries whose body cannot be read as records: the kernel sent nonsense"""
    resumed: int = 0
    dropped: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def count(self, entry: LogEntry, records: int | None = None) -> None:
        """One more; `records` of who has parsed them already, -1 for nonsense."""
        self.entries += 1
        self.first_ns = self.first_ns or entry.time_ns
        self.last_ns = entry.time_ns
        if entry.kind == EntryKind.RESUMED:
            self.resumed += 1
        elif entry.kind == EntryKind.DROPPED:
            self.dropped += int.from_bytes(entry.body, "little")
        elif entry.kind in WITH_RECORDS:
            if records is None:
                try:
                    records = len(parse_records(entry.body))
                except FormatError:
                    records = -1
            if records < 0:
                self.unreadable += 1
            else:
                self.records += records


def replace_file(place: Path, data: bytes) -> None:
    """Put a file there, whole or not at all, whatever happens meanwhile. Raises OSError."""
    write_private(place, data, durable=True)


@contextlib.contextmanager
def locked(place: Path, words: str) -> Iterator[None]:
    """Have a file, made if need be, for oneself. Raises RemoteError, with these words if somebody else has it."""
    try:
        make_folder(place.parent)
        file = open_own(place, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise RemoteError(f"cannot write into {place.parent}: {describe(error)}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RemoteError(words) from error
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def opened(place: Path, flags: int) -> Iterator[int]:
    """A file's descriptor. Raises OSError."""
    file = open_own(place, flags)
    try:
        yield file
    finally:
        os.close(file)


def write_all(file: int, data: bytes | bytearray) -> None:
    """Write until all is written. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


class LogFolder:
    """One folder for one log. Everything in it was verified before it was written.

    An interrupted run can leave entries that the state does not cover, never a state that covers missing entries. The
    next run truncates those entries and fetches them again. Reading needs no lock: what the state covers stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """For those who fetch: two that append would tear each other's entries apart. Raises RemoteError."""
        return locked(self.path / _LOCK, f"somebody else is fetching into {self.path}")

    def _kept(self) -> dict[str, Any] | None:
        place = self.path / _STATE
        try:
            value = json.loads(place.read_bytes())
            if not isinstance(value, dict):
                raise ValueError("no object")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise RemoteError(f"{place} is unusable: {describe(error)}") from error
        return value

    def _state(self) -> tuple[LogState, int, int] | None:
        """The state, and how many bytes of entries and of text it covers."""
        kept = self._kept()
        if kept is None:
            return None
        try:
            return LogState.load(kept), u64(kept["entries_bytes"]), u64(kept["audit_bytes"])
        except (FormatError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise RemoteError(f"{self.path / _STATE} is unusable: {error}") from error

    def known(self) -> LogState | None:
        """What was verified so far; None for a new folder. Raises RemoteError."""
        found = self._state()
        return found[0] if found is not None else None

    def add(self, entries: Iterable[LogEntry], state: LogState) -> int:
        """Append verified entries, then the state that they lead to; returns how many. Hold the lock meanwhile.

        On return they are on the disk: only then may they be acknowledged. Raises RemoteError.
        """
        count = 0
        try:
            make_folder(self.path)
            found = self._state()
            sizes = found[1:] if found is not None else (0, 0)
            flags = os.O_WRONLY | os.O_CREAT
            with opened(self.path / _ENTRIES, flags) as raw, opened(self.path / _AUDIT, flags) as text:
                # What an interrupted run left behind the state is fetched again.
                for file, size in ((raw, sizes[0]), (text, sizes[1])):
                    if os.fstat(file).st_size < size:
                        raise RemoteError(f"{self.path} holds less than was verified: a file was changed")
                    os.ftruncate(file, size)
                    os.lseek(file, size, os.SEEK_SET)
                data, lines = bytearray(), bytearray()
                ends = list(sizes)
                for entry in entries:
                    data += entry.raw
                    for line in audit_lines(entry):
                        lines += line
                    count += 1
                    if len(data) > _FLUSH:
                        ends = _append(raw, data, text, lines, ends)
                ends = _append(raw, data, text, lines, ends)
                os.fsync(raw)
                os.fsync(text)
            value = {**state.dump(), "entries_bytes": ends[0], "audit_bytes": ends[1]}
            replace_file(self.path / _STATE, json.dumps(value, indent=1).encode())
        except OSError as error:
            raise RemoteError(f"cannot write into {self.path}: {describe(error)}") from error
        return count

    def entries(self, offset: int = 0) -> Iterator[LogEntry]:
        """The entries in the folder, from one on that begins at this byte of the file; few are held at a time.

        They are what the file says (`verified` hashes them too). Raises RemoteError, FormatError.
        """
        found = self._state()
        if found is None:
            return
        try:
            with open(self.path / _ENTRIES, "rb") as stream:
                stream.seek(min(offset, found[1]))
                yield from read_entries(stream, max(0, found[1] - offset))
        except OSError as error:
            raise RemoteError(f"cannot read {self.path / _ENTRIES}: {describe(error)}") from error

    def verified(self) -> Iterator[LogEntry]:
        """The entries, hashed again on the way; at the end they are compared with the signed head.

        An entry that is used before the end has not been verified yet. Raises VerificationFailed, RemoteError.
        """
        state = self.known()
        if state is None:
            raise RemoteError(f"there is no log in {self.path}")
        if state.seen is not None:
            check_head(state.seen.head, state.key)
            if (state.seen.head.size, state.seen.head.root) != (state.tree.size, state.tree.root()):
                raise VerificationFailed(f"the state in {self.path} is not the one of the signed head: it was changed")
        tree = state.begin.copy()
        due = tree.size
        append = tree.append
        try:
            for entry in self.entries():
                if entry.sequence != due:
                    raise VerificationFailed(f"entry {entry.sequence} lies where {due} should: the file was changed")
                due += 1
                append(leaf_hash(entry.raw))
                yield entry
        except FormatError as error:
            raise VerificationFailed(f"behind entry {due - 1} the file was changed: {error}") from error
        if tree.size != state.tree.size or tree.root() != state.tree.root():
            raise VerificationFailed(f"the entries in {self.path} were changed: they are not those that were verified")

    def verify(self) -> LogSummary:
        """Hash everything again and compare with the state. Raises VerificationFailed."""
        summary = LogSummary()
        for entry in self.verified():
            summary.count(entry)
        return summary


def _append(raw: int, data: bytearray, text: int, lines: bytearray, ends: list[int]) -> list[int]:
    write_all(raw, data)
    write_all(text, lines)
    ends = [ends[0] + len(data), ends[1] + len(lines)]
    data.clear()
    lines.clear()
    return ends
