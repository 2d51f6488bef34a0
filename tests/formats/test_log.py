# SPDX-License-Identifier: GPL-2.0-or-later
"""Audit records, entries, heads and manifests of the log: what is written is read, and nothing else."""

from __future__ import annotations

import contextlib
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.log import (
    ENTRY_HEADER,
    MAX_RULES_MESSAGE,
    TICK_NS,
    AuditRecord,
    AuditState,
    EntryKind,
    Head,
    Heartbeat,
    LogManifest,
    RulesState,
    Silence,
    pack_records,
    parse_entries,
    parse_records,
)
from veil.guest.driver.build import driver_sources

records = st.lists(st.builds(AuditRecord, st.integers(0, 0xFFFF), st.binary(max_size=60)), max_size=8)


@given(records)
def test_records(found: list[AuditRecord]) -> None:
    assert parse_records(pack_records(found)) == found


@given(st.binary(max_size=100))
def test_any_records(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert pack_records(parse_records(data)) == data


@given(st.lists(st.tuples(st.sampled_from(EntryKind), st.binary(max_size=40)), max_size=6))
def test_entries(found: list[tuple[EntryKind, bytes]]) -> None:
    data = b"".join(ENTRY_HEADER.pack(n, n * 7, kind, len(body)) + body for n, (kind, body) in enumerate(found))
    entries = list(parse_entries(data))
    assert [(entry.kind, entry.body) for entry in entries] == found
    assert b"".join(entry.raw for entry in entries) == data


@given(st.binary(max_size=100))
def test_any_entries(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert b"".join(entry.raw for entry in parse_entries(data)) == data


def test_heads() -> None:
    head = Head(5, 2, 100, 90, 0, b"r" * 32, b"signature")
    assert Head.parse(head.pack()) == head
    for data in (b"", head.pack()[:72], bytes(300), Head(1, 2, 0, 0, 0, bytes(32), b"s").pack()):
        with pytest.raises(FormatError):
            Head.parse(data)


@given(st.binary(max_size=150))
def test_any_head(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert Head.parse(data).pack() == data


def test_manifests() -> None:
    manifest = LogManifest(b"key", 4096, "halt")
    assert LogManifest.parse(manifest.pack()) == manifest
    for data in (b"", b"[]", b"{}", b'{"key": "zz", "memory": 1, "full": "halt"}', b"\xff", b"[" * 100_000,
                 b'{"key": "", "memory": 1e999, "full": "halt"}'):  # fmt: skip
        with pytest.raises(FormatError):
            LogManifest.parse(data)


U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)


@given(st.builds(Heartbeat, st.sampled_from(AuditState), U32, U64))
def test_heartbeats(found: Heartbeat) -> None:
    assert Heartbeat.parse(found.pack()) == found


@given(st.binary(max_size=40))
def test_any_heartbeat(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert Heartbeat.parse(data).pack() == data


def test_heartbeats_that_are_none() -> None:
    good = struct.pack("<HHIQ", 1, 2, 3, 4)
    assert Heartbeat.parse(good) == Heartbeat(AuditState.LOCKED, 3, 4)
    for data in (b"", good[:-1], good + b"x", struct.pack("<HHIQ", 2, 0, 0, 0), struct.pack("<HHIQ", 1, 3, 0, 0)):
        with pytest.raises(FormatError, match="sign of life"):
            Heartbeat.parse(data)


@given(st.builds(Silence, U64, U64), st.binary(max_size=20))
def test_silences(found: Silence, data: bytes) -> None:
    assert Silence.parse(found.pack()) == found
    with contextlib.suppress(FormatError):
        assert Silence.parse(data).pack() == data


def test_states_of_rules() -> None:
    state = RulesState(2, 1, -2, b"words", b"-D")
    assert RulesState.parse(state.pack()) == state
    long = struct.pack("<IIiI", 1, 1, 1, MAX_RULES_MESSAGE + 1) + bytes(2000)
    for data in (b"", state.pack()[:15], struct.pack("<IIiI", 1, 1, 1, 9) + b"short", long):
        with pytest.raises(FormatError, match="audit rules"):
            RulesState.parse(data)


def test_the_driver_says_the_same() -> None:
    """Layouts and numbers that stand in C too."""
    header = b"\n".join(driver_sources().values()).decode()
    defined = {name: int(value) for name, value in re.findall(r"#define (VEIL_\w+) (\d+)$", header, re.MULTILINE)}
    assert defined["VEIL_TICK_MS"] * 1_000_000 == TICK_NS
    assert defined["VEIL_MAX_RULES_MESSAGE"] == MAX_RULES_MESSAGE
    (fields,) = re.findall(r"struct veil_heartbeat \{(.*?)\};", header, re.DOTALL)
    widths = {"u16": "H", "u32": "I", "u64": "Q"}
    layout = "".join(widths[kind] for kind, _ in re.findall(r"(u\d+) (\w+);", fields))
    version, audit, rules, ticks = struct.unpack("<" + layout, Heartbeat(AuditState.ON, 5, 6).pack())
    assert [name for _, name in re.findall(r"(u\d+) (\w+);", fields)] == ["version", "audit", "rules", "ticks"]
    assert (version, audit, rules, ticks) == (defined["VEIL_HEARTBEAT_VERSION"], 1, 5, 6)
