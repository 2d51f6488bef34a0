# SPDX-License-Identifier: GPL-2.0-or-later
"""Audit records, entries, heads and manifests of the log: what is written is read, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.log import (
    ENTRY_HEADER,
    AuditRecord,
    EntryKind,
    Head,
    LogManifest,
    pack_records,
    parse_entries,
    parse_records,
)

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
