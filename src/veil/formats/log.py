# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG's formats: what the kernel hands over, entries as they are kept and fetched, signed heads.

An entry is what one call of the kernel brought, mostly all records of one audit event, or a word of the service itself.
It is a leaf of the log's Merkle tree, header and all.
"""

from __future__ import annotations

import enum
import json
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from veil.formats.errors import FormatError
from veil.formats.log_settings import LOG_NUMBER
from veil.formats.merkle import HASH_BYTES
from veil.formats.numbers import u64

__all__ = [
    "ACKNOWLEDGE_CALL",
    "ENTRY_HEADER",
    "FETCH_CALL",
    "LOG_GUID",
    "LOG_NUMBER",
    "MAX_RULES",
    "MAX_RULES_MESSAGE",
    "PROOF_CALL",
    "RANGE_ANSWER",
    "RULES_ANSWER",
    "RULES_CALL",
    "SILENCE_TOLD_NS",
    "TICK_NS",
    "AuditRecord",
    "AuditState",
    "EntryKind",
    "Head",
    "Heartbeat",
    "KernelCall",
    "LogEntry",
    "LogManifest",
    "RulesState",
    "ServiceWord",
    "Silence",
    "UserCall",
    "pack_records",
    "parse_entries",
    "parse_records",
    "read_entries",
]

LOG_GUID = uuid.UUID("5e1106c0-9a7b-4d5e-8f2a-6c0d8b7a1e01")


class KernelCall(enum.IntEnum):
    """What the driver asks."""

    RECORDS = 0
    """Records of one event (`pack_records`): kept before the kernel queues them."""
    INTENT = 1
    """The same, of something that the kernel is about to do."""
    HEARTBEAT = 2
    """`Heartbeat`: the driver lives. -> u32 generation of the rules that are wanted, 0 for none"""
    RULES = 3
    """`RULES_CALL`, auditctl's words (at most `MAX_RULES_MESSAGE` bytes) -> `RULES_ANSWER`, the rules' text for
    auditctl (at most `MAX_RULES` bytes)"""


class UserCall(enum.IntEnum):
    """What remote users ask: readers and owners of the CVM, or owners only."""

    HEAD = 0
    """-> `Head`"""
    FETCH = 1
    """u64 sequence number, u32 bytes -> whole entries from there on, at most that many bytes, at least one entry"""
    RANGE = 2
    """-> u64 size, then the hashes of the compact range up to the first entry that is still there"""
    ACKNOWLEDGE = 3
    """u64: entries below have been fetched and may be forgotten. Owners only"""
    INCLUSION = 4
    """u64 index, u64 size -> hashes"""
    CONSISTENCY = 5
    """u64 first size, u64 second size -> hashes"""
    SET_RULES = 6
    """Text for auditctl -R -> u32 generation. Owners only"""
    RULES = 7
    """-> `RulesState`"""


#: FETCH: u64 sequence number, u32 bytes.
FETCH_CALL = struct.Struct("<QI")
#: RANGE's answer begins with a u64, and hashes follow.
RANGE_ANSWER = struct.Struct("<Q")
#: ACKNOWLEDGE: u64 sequence number.
ACKNOWLEDGE_CALL = struct.Struct("<Q")
#: INCLUSION: u64 index, u64 size. CONSISTENCY: u64 first size, u64 second size.
PROOF_CALL = struct.Struct("<QQ")

# What the kernel hands over

_RECORD = struct.Struct("<HHI")


class AuditRecord(NamedTuple):
    """One record: its type (AUDIT_SYSCALL and so on) and its text, both the kernel's word."""

    type: int
    text: bytes


def pack_records(records: Sequence[AuditRecord]) -> bytes:
    """As the driver does: {u16 type, u16 0, u32 length, text} one after the other."""
    return b"".join(_RECORD.pack(record.type, 0, len(record.text)) + record.text for record in records)


def parse_records(body: bytes) -> list[AuditRecord]:
    """Raises FormatError if the kernel sent something else."""
    records, at = [], 0
    while at < len(body):
        if at + _RECORD.size > len(body):
            raise FormatError("an audit record is cut short")
        kind, reserved, length = _RECORD.unpack_from(body, at)
        at += _RECORD.size
        if reserved or at + length > len(body):
            raise FormatError(f"an audit record claims {length} bytes")
        records.append(AuditRecord(kind, body[at : at + length]))
        at += length
    return records


# Signs of life

#: The driver counts a timer interrupt so often, while it is run.
TICK_NS = 250_000_000
#: A kernel that beats has not called for so long: the service says so.
SILENCE_TOLD_NS = 2_000_000_000
_HEARTBEAT = struct.Struct("<HHIQ")
_HEARTBEAT_VERSION = 1
_SILENCE = struct.Struct("<QQ")


class AuditState(enum.IntEnum):
    """The kernel's `audit_enabled`, as it says."""

    OFF = 0
    ON = 1
    LOCKED = 2


class Heartbeat(NamedTuple):
    """What the kernel says of itself in a sign of life."""

    audit: AuditState
    rules: int
    """generation of the audit rules that it was given last"""
    ticks: int
    """timer interrupts that the driver's own timer took since it was loaded: one each `TICK_NS` in which it was run"""

    def pack(self) -> bytes:
        """As the driver does: {u16 version 1, u16 audit state, u32 generation of rules, u64 ticks}."""
        return _HEARTBEAT.pack(_HEARTBEAT_VERSION, self.audit, self.rules, self.ticks)

    @classmethod
    def parse(cls, data: bytes) -> Heartbeat:
        """Raises FormatError if the kernel sent something else."""
        if len(data) != _HEARTBEAT.size:
            raise FormatError(f"a sign of life of {len(data)} bytes")
        version, audit, rules, ticks = _HEARTBEAT.unpack(data)
        if version != _HEARTBEAT_VERSION or audit > AuditState.LOCKED:
            raise FormatError(f"a sign of life of version {version}, with audit state {audit}")
        return cls(AuditState(audit), rules, ticks)


class Silence(NamedTuple):
    """The service's word of a kernel that does not call."""

    quiet_ns: int
    """since its last call"""
    awake_ns: int
    """so long of that the services were run all the same, as the host does each second"""

    def pack(self) -> bytes:
        """{u64, u64}"""
        return _SILENCE.pack(*self)

    @classmethod
    def parse(cls, data: bytes) -> Silence:
        """Raises FormatError."""
        if len(data) != _SILENCE.size:
            raise FormatError(f"a silence of {len(data)} bytes")
        return cls(*_SILENCE.unpack(data))


# Words of other services

_WORD = struct.Struct("<H")


class ServiceWord(NamedTuple):
    """What another service has to say, in an entry of kind WORD."""

    service: int
    """Its number."""
    body: bytes

    def pack(self) -> bytes:
        """{u16, body}"""
        return _WORD.pack(self.service) + self.body

    @classmethod
    def parse(cls, data: bytes) -> ServiceWord:
        """Raises FormatError."""
        if len(data) < _WORD.size:
            raise FormatError(f"a service's word of {len(data)} bytes")
        (service,) = _WORD.unpack_from(data)
        return cls(service, data[_WORD.size :])


# Entries


class EntryKind(enum.IntEnum):
    """The author of an entry and its subject."""

    RECORDS = 0
    INTENT = 1
    HEARTBEAT = 2
    STARTED = 16
    """The service: the machine was launched. Always entry 0."""
    RESUMED = 17
    """The service: the machine was restored from a snapshot."""
    DROPPED = 18
    """The service: this many calls (u64) of the kernel found no room before this entry."""
    RULES = 19
    """The service: an owner wants these audit rules. SHA-256 of the owner's public key, then the text."""
    SILENCE = 20
    """The service: the kernel has not called for some time (`Silence`). Before its next call, and in the middle too."""
    WORD = 21
    """Another service's: u16 its number, then what it says, in a format of its own (`ServiceWord`)."""


#: u64 sequence number, u64 nanoseconds of the machine's time stamp counter, u32 kind, u32 length
ENTRY_HEADER = struct.Struct("<QQII")


class LogEntry(NamedTuple):
    """An entry. `raw` is what its leaf hash is over."""

    sequence: int
    time_ns: int
    kind: EntryKind
    body: bytes
    raw: bytes

    @property
    def dropped(self) -> int:
        """How many calls found no room, in an entry of kind DROPPED."""
        return int.from_bytes(self.body[:8], "little")


_KIND = {kind.value: kind for kind in EntryKind}
_MAX_ENTRY = 16 << 20
_CHUNK = 1 << 20


def parse_entries(data: bytes) -> Iterator[LogEntry]:
    """Entries one after the other. Raises FormatError."""
    at = 0
    while at < len(data):
        entry = _entry_at(data, at)
        if entry is None:
            raise FormatError("a log entry is cut short")
        yield entry
        at += len(entry.raw)


def read_entries(stream: BinaryIO, size: int) -> Iterator[LogEntry]:
    """The entries in the next `size` bytes of a file, of which little is held at a time. Raises FormatError."""
    data, at = b"", 0
    while True:
        entry = _entry_at(data, at)
        if entry is not None:
            yield entry
            at += len(entry.raw)
            continue
        data, at = data[at:], 0
        more = stream.read(min(size, _CHUNK))
        if not more:
            break
        size -= len(more)
        data += more
    if data or size:
        raise FormatError("a log entry is cut short")


def _entry_at(data: bytes, at: int) -> LogEntry | None:
    """The entry at an offset; None if it is not all there."""
    if at + ENTRY_HEADER.size > len(data):
        return None
    sequence, time_ns, number, length = ENTRY_HEADER.unpack_from(data, at)
    kind = _KIND.get(number)
    if kind is None or length > _MAX_ENTRY:
        raise FormatError(f"log entry {sequence} of kind {number} claims {length} bytes")
    body = at + ENTRY_HEADER.size
    end = body + length
    return LogEntry(sequence, time_ns, kind, data[body:end], data[at:end]) if end <= len(data) else None


# Rules

MAX_RULES = 16 << 10
MAX_RULES_MESSAGE = 1024
#: The kernel's call RULES: u32 generation that is loaded, i32 how loading ended.
RULES_CALL = struct.Struct("<Ii")
#: The answer: u32 generation that is wanted.
RULES_ANSWER = struct.Struct("<I")
_RULES = struct.Struct("<IIiI")


@dataclass(frozen=True)
class RulesState:
    """The audit rules that an owner wants, and what the kernel says of them."""

    wanted: int
    """generation; 0: nobody has set any"""
    loaded: int
    """generation that the kernel says to have loaded"""
    status: int
    """how that ended: the exit status of auditctl, or an error number of Linux below 0"""
    words: bytes
    """what auditctl said if it refused them, as the kernel says: at most `MAX_RULES_MESSAGE` bytes of anything"""
    text: bytes

    def pack(self) -> bytes:
        """For the wire."""
        head = _RULES.pack(self.wanted, self.loaded, self.status, len(self.words))
        return head + self.words + self.text

    @classmethod
    def parse(cls, data: bytes) -> RulesState:
        """Raises FormatError."""
        if len(data) < _RULES.size:
            raise FormatError(f"a state of the audit rules of {len(data)} bytes")
        wanted, loaded, status, length = _RULES.unpack_from(data)
        at = _RULES.size + length
        if length > MAX_RULES_MESSAGE or at > len(data):
            raise FormatError(f"a state of the audit rules with {length} bytes of auditctl's words")
        return cls(wanted, loaded, status, data[_RULES.size : at], data[at:])


# Heads

_HEAD = struct.Struct(f"<QQQQQ{HASH_BYTES}s")
_SIGNED_PREFIX = b"veil log head 1\0"


@dataclass(frozen=True)
class Head:
    """The state of the log at one time, signed with the service's key, which attestation binds."""

    size: int
    """entries so far"""
    first: int
    """the first entry that is still there; the ones before were acknowledged"""
    time_ns: int
    last_ns: int
    """when the kernel called last: silence shows"""
    dropped: int
    """calls that found no room, ever"""
    root: bytes
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return _SIGNED_PREFIX + _HEAD.pack(self.size, self.first, self.time_ns, self.last_ns, self.dropped, self.root)

    def pack(self) -> bytes:
        """For the wire."""
        return self.signed_bytes[len(_SIGNED_PREFIX) :] + self.signature

    @classmethod
    def parse(cls, data: bytes) -> Head:
        """Raises FormatError; says nothing of the signature."""
        if len(data) <= _HEAD.size or len(data) > _HEAD.size + 128:
            raise FormatError(f"a log head of {len(data)} bytes")
        size, first, time_ns, last_ns, dropped, root = _HEAD.unpack_from(data)
        if first > size:
            raise FormatError(f"a log head of {size} entries of which the first is {first}")
        return cls(size, first, time_ns, last_ns, dropped, root, data[_HEAD.size :])


@dataclass(frozen=True)
class LogManifest:
    """What attestation says of the service."""

    key: bytes
    """DER SubjectPublicKeyInfo of the key that signs heads"""
    memory: int
    full: str
    """what happens when the memory is full: "halt" or "drop" """

    def pack(self) -> bytes:
        """JSON."""
        return json.dumps({"key": self.key.hex(), "memory": self.memory, "full": self.full}).encode()

    @classmethod
    def parse(cls, data: bytes) -> LogManifest:
        """Raises FormatError."""
        try:
            found: dict[str, Any] = json.loads(data)
            manifest = cls(bytes.fromhex(found["key"]), u64(found["memory"]), str(found["full"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FormatError(f"the log's manifest is unreadable: {error!r}") from error
        return manifest
