# SPDX-License-Identifier: GPL-2.0-or-later
"""Verified entries for other systems: each at least once, with the log's name and the entry's number.

Where to go on is remembered once what came before is safe. An interrupted export sends some entries again; receivers
recognise them by log and number (and by record, where each record goes by itself).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from veil.errors import describe
from veil.formats.audit_types import type_name
from veil.formats.errors import FormatError
from veil.formats.kci import KCI_NUMBER
from veil.formats.kci_status import CodeWord
from veil.formats.log import EntryKind, Heartbeat, LogEntry, ServiceWord, Silence, parse_records
from veil.remote.errors import RemoteError
from veil.remote.log.folder import LogFolder, locked, opened, replace_file, write_all

__all__ = ["DirectorySink", "Position", "Sink", "entry_value", "export", "log_name", "read_position"]

_PROGRESS, _LOCK = "export.json", ".lock"
#: None yet, or the directory's own: the maker of the directory does not choose what is written to elsewhere.
_NAME = re.compile(r"(veil-log-[0-9]{20}\.jsonl)?")
_BATCH_ENTRIES, _BATCH_BYTES = 500, 1 << 20
_FILE_BYTES = 64 << 20
#: no file of Linux's is longer
_MAX_FILE = (1 << 63) - 1


@dataclass(frozen=True)
class Position:
    """Where an export goes on."""

    log: str = ""
    next: int = 0
    """the number of the first entry that was not exported yet"""
    offset: int = 0
    """where it begins in the folder's file"""
    file: str = ""
    size: int = 0
    """the directory's file in the making, and how much of it is good"""


class Sink(Protocol):
    """Where entries go."""

    def position(self) -> Position:
        """Where to go on. Raises RemoteError."""

    def put(self, log: str, entries: Sequence[LogEntry], offset: int) -> None:
        """Take entries, after which the next one begins at `offset`. On return they are safe. Raises RemoteError."""


def log_name(key: bytes) -> str:
    """A permanent name for a log: the SHA-256 of the key that signs its heads, which attestation bound to the CVM."""
    return hashlib.sha256(key).hexdigest()


def entry_value(entry: LogEntry) -> dict[str, Any]:
    """An entry for JSON; always the same for the same entry."""
    value: dict[str, Any] = {"sequence": entry.sequence, "time_ns": entry.time_ns, "kind": entry.kind.name}
    if entry.kind == EntryKind.DROPPED:
        value["dropped"] = entry.dropped
    elif entry.kind == EntryKind.RULES:
        value["owner"], value["rules"] = entry.body[:32].hex(), entry.body[32:].decode(errors="backslashreplace")
    try:
        if entry.kind == EntryKind.SILENCE:
            value |= Silence.parse(entry.body)._asdict()
        elif entry.kind == EntryKind.WORD:
            value |= _word_value(ServiceWord.parse(entry.body))
        elif entry.kind == EntryKind.HEARTBEAT and entry.body:
            value |= Heartbeat.parse(entry.body)._asdict()
        elif entry.kind in (EntryKind.RECORDS, EntryKind.INTENT):
            value["records"] = [
                {"type": type_name(kind), "text": text.decode(errors="backslashreplace")}
                for kind, text in parse_records(entry.body)
            ]
    except FormatError:
        value["unreadable"] = entry.body.hex()
    return value


def _word_value(word: ServiceWord) -> dict[str, Any]:
    value: dict[str, Any] = {"service": word.service}
    if word.service == KCI_NUMBER:
        said = CodeWord.parse(word.body)
        return value | {"event": said.event.value, "words": said.words, "detail": dict(said.detail)}
    return value | {"word": word.body.hex()}


def export(folder: LogFolder, sink: Sink) -> int:
    """Export what a folder has and the sink has not; returns how many entries. Raises RemoteError.

    The entries are as they were verified when they were fetched: who doubts the disk since calls `verify` first.
    """
    state = folder.known()
    if state is None:
        raise RemoteError(f"there is no log in {folder.path}")
    name = log_name(state.key)
    position = sink.position()
    if position.log not in ("", name):
        raise RemoteError(f"another log ({position.log[:16]}) was exported there before: export {name[:16]} elsewhere")
    count = 0
    offset = position.offset if _begins_there(folder, position) else 0
    batch: list[LogEntry] = []
    size = 0
    try:
        for entry in folder.entries(offset):
            offset += len(entry.raw)
            if entry.sequence < position.next:
                continue
            batch.append(entry)
            size += len(entry.raw)
            if len(batch) >= _BATCH_ENTRIES or size >= _BATCH_BYTES:
                sink.put(name, batch, offset)
                count += len(batch)
                batch, size = [], 0
    except FormatError as error:
        raise RemoteError(f"the log in {folder.path} is unusable: {error}") from error
    if batch:
        sink.put(name, batch, offset)
    return count + len(batch)


def _begins_there(folder: LogFolder, position: Position) -> bool:
    """Not if the folder was fetched again, later than it was the first time."""
    try:
        first = next(folder.entries(position.offset), None)
    except FormatError:
        return False
    return first is None or first.sequence == position.next


def read_position(place: Path) -> Position:
    """What `put` remembered. Raises RemoteError."""
    try:
        value = json.loads(place.read_bytes())
        position = Position(**value)
        if any(type(value[name]) is not type(due) for name, due in asdict(Position()).items()):
            raise ValueError("a value is of another type")
        if any(not 0 <= number <= _MAX_FILE for number in (position.next, position.offset, position.size)):
            raise ValueError("a number is out of range")
        if not _NAME.fullmatch(position.file):
            raise ValueError("a file of another name")
    except FileNotFoundError:
        return Position()
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RemoteError(f"{place} is unusable: {describe(error)}") from error
    return position


class DirectorySink:
    """JSON lines, an entry each, in files of bounded size named by their first entry.

    What an interrupted run left behind the known position is cut off, and written again, which gives the same bytes:
    so there are no duplicates here, and who follows the file sees none.
    """

    def __init__(self, path: Path, *, file_bytes: int = _FILE_BYTES) -> None:
        """A file that has reached `file_bytes` gets no further entries."""
        self.path = path
        self._file_bytes = file_bytes

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """For those who export. Raises RemoteError."""
        with locked(self.path / _LOCK, f"somebody else is exporting into {self.path}"):
            yield

    def position(self) -> Position:
        """Where to go on. Raises RemoteError."""
        return read_position(self.path / _PROGRESS)

    def put(self, log: str, entries: Sequence[LogEntry], offset: int) -> None:
        """See `Sink`."""
        position = self.position()
        name, size = position.file, position.size
        if not name or size >= self._file_bytes:
            name, size = f"veil-log-{entries[0].sequence:020}.jsonl", 0
        lines = bytearray()
        for entry in entries:
            lines += json.dumps({"log": log, **entry_value(entry)}, separators=(",", ":")).encode() + b"\n"
        try:
            with opened(self.path / name, os.O_WRONLY | os.O_CREAT) as file:
                if os.fstat(file).st_size < size:
                    raise RemoteError(f"{self.path / name} is shorter than it was: somebody changed it")
                os.ftruncate(file, size)
                os.lseek(file, size, os.SEEK_SET)
                write_all(file, lines)
                os.fsync(file)
            done = Position(log, entries[-1].sequence + 1, offset, name, size + len(lines))
            replace_file(self.path / _PROGRESS, json.dumps(asdict(done)).encode())
        except OSError as error:
            raise RemoteError(f"cannot write into {self.path}: {describe(error)}") from error
