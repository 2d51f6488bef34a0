# SPDX-License-Identifier: GPL-2.0-or-later
"""What a compromised kernel can have VeilS-LOG keep, as its user reads, analyses and exports it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable

from fuzz.target import Target
from veil.formats.errors import FormatError
from veil.formats.log import (
    ENTRY_HEADER,
    AuditRecord,
    AuditState,
    EntryKind,
    Head,
    Heartbeat,
    LogEntry,
    RulesState,
    Silence,
    pack_records,
    parse_entries,
    read_entries,
)
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.audit_lines import audit_lines
from veil.remote.log.export import entry_value
from veil.remote.log.findings import claimed_text
from veil.remote.log.reader import LogState

__all__ = ["TARGETS"]


def _entries(data: bytes) -> None:
    whole: list[LogEntry] | None
    try:
        whole = list(parse_entries(data))
    except FormatError:
        whole = None
    analysis = LogAnalysis()
    read = []
    try:
        for entry in read_entries(io.BytesIO(data), len(data)):
            analysis.feed(entry)
            lines = list(audit_lines(entry))
            # No record writes a line of its own.
            assert all(line.count(b"\n") == 1 and b"\0" not in line and len(line) <= 8969 for line in lines)
            assert json.loads(json.dumps(entry_value(entry)))["sequence"] == entry.sequence
            read.append(entry)
    except FormatError:
        assert whole is None
    else:
        assert read == whole
    analysis.finish(None)
    found = analysis.findings
    assert analysis.summary.entries == len(read)
    assert len(found.items) <= sum(found.counts.values())
    assert json.dumps([item.json() for item in found.items])
    assert all(item.words.isprintable() and claimed_text(item.claimed_ms) for item in found.items)


def _entry(sequence: int, kind: EntryKind, body: bytes) -> bytes:
    return ENTRY_HEADER.pack(sequence, sequence * 1_000_000_000, kind, len(body)) + body


def _entries_seeds() -> Iterable[bytes]:
    texts = (
        (1300, b"audit(1700000000.123:45): arch=c000003e syscall=59"),
        (1305, b"audit(1700000000.123:45): op=set audit_enabled=0 old=1 auid=0 ses=1 subj=unconfined res=1"),
        (1305, b"audit(1700000001.123:47): auid=0 ses=1 op=add_rule key=(null) list=4 res=1"),
        (1332, b"audit(1700000002.123:48): sec=1 nsec=0"),
        (1121, b"audit(1700000002.123:2147483649): pid=1 msg='veil-intent op=module file=\"/tmp/x.ko\"'"),
        (1121, b"audit(1700000002.123:2147483650): pid=1 msg='veil-intent op=module comm=\"x\" source=file'"),
        (1305, b"audit(1700000001.123:49): op=set audit_rate_limit=" + b"9" * 40 + b" old=1 res=1"),
        (1112, b"audit(99999999999999999999.999:50): \x1b[2J\rx"),
    )
    records = pack_records([AuditRecord(kind, text) for kind, text in texts])
    bodies = (
        (EntryKind.STARTED, b""), (EntryKind.RECORDS, records), (EntryKind.HEARTBEAT, b""),
        (EntryKind.INTENT, records), (EntryKind.DROPPED, (3).to_bytes(8, "little")), (EntryKind.RESUMED, bytes(32)),
        (EntryKind.RULES, bytes(32) + b"-D"), (EntryKind.RECORDS, b"nonsense"), (EntryKind.HEARTBEAT, records),
        (EntryKind.HEARTBEAT, Heartbeat(AuditState.OFF, 1, 9).pack()), (EntryKind.SILENCE, Silence(9, 5).pack()),
    )  # fmt: skip
    whole = [_entry(number, kind, body) for number, (kind, body) in enumerate(bodies)]
    yield b"".join(whole)
    yield from whole
    yield b"".join(whole * 2)
    # More digits than Python makes a number of.
    long = b"audit(1700000001.123:49): op=set audit_rate_limit=" + b"9" * 4301 + b" old=1 res=1"
    yield _entry(0, EntryKind.RECORDS, pack_records([AuditRecord(1305, long)]))


def _head(data: bytes) -> None:
    head = Head.parse(data)
    assert head.pack() == data
    assert Head.parse(head.pack()) == head


def _state(data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError("no JSON") from None
    state = LogState.load(value)
    assert LogState.load(json.loads(state.pack())).dump() == state.dump()


def _state_seeds() -> Iterable[bytes]:
    value = {"size": 3, "hashes": ["11" * 32, "22" * 32], "key": "aa", "begin": {"size": 0, "hashes": []}}
    yield json.dumps(value).encode()
    head = Head(3, 0, 7, 7, 0, bytes(32), b"signature").pack().hex()
    yield json.dumps({**value, "head": head, "asked_ns": 1, "answered_ns": 2}).encode()


def _rules(data: bytes) -> None:
    assert RulesState.parse(data).pack() == data


_STATE_WORDS = (b'"size"', b'"hashes"', b'"begin"', b'"head"', b'"asked_ns"', b"null", b"NaN", b"1e999", b"[]", b"-1")
_ENTRY_WORDS = (
    b"audit(", b".000:", b"): ", b"4294967295", b"99999999999999999999", b"op=set", b"audit_enabled=0", b"res=1",
    b"pid=1 msg='veil-intent op=module comm=", b" old=1 ", b"9" * 40, b"\x1b[2J", b"\n", b"\0", b"\xff\xff\xff\xff",
)  # fmt: skip
TARGETS = (
    Target("audit-log", _entries, _entries_seeds, words=_ENTRY_WORDS, max_bytes=8192),
    Target("audit-log-head", _head, lambda: [Head(3, 1, 7, 7, 0, bytes(32), b"s").pack()], max_bytes=256),
    Target("audit-log-state", _state, _state_seeds, words=_STATE_WORDS, max_bytes=2048),
    Target("audit-rules", _rules, lambda: [RulesState(1, 0, -2, b"bad", b"-D").pack()], max_bytes=256),
)
