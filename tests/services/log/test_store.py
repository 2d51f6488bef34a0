# SPDX-License-Identifier: GPL-2.0-or-later
"""The log's ring and tree against a plain list, whatever is appended, read, acknowledged and restored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.examples import examples
from veil.formats import merkle
from veil.formats.log import ENTRY_HEADER, EntryKind, parse_entries
from veil.formats.merkle import CompactRange, leaf_hash, verify_consistency, verify_inclusion
from veil.services.log.store import LogFull, LogStore

SIZE = 1024


class Memory:
    """A service's memory that is a bytearray."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.data = bytearray(size)
        self.reads = 0

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        self.reads += 1
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data


class Store(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.store = LogStore(self.memory, lambda: 7)  # type: ignore[arg-type]
        self.entries: list[bytes] = []  # all, kept
        self.roots: dict[int, bytes] = {}

    @property
    def held(self) -> int:
        return sum(map(len, self.entries[self.store.first :]))

    @rule(body=st.binary(max_size=200), reserve=st.integers(0, 100))
    def append(self, body: bytes, reserve: int) -> None:
        raw = ENTRY_HEADER.pack(len(self.entries), 7, EntryKind.RECORDS, len(body)) + body
        if self.held + len(raw) + reserve > SIZE:
            with pytest.raises(LogFull):
                self.store.append(EntryKind.RECORDS, body, reserve=reserve)
        else:
            assert self.store.append(EntryKind.RECORDS, body, reserve=reserve) == len(self.entries)
            self.entries.append(raw)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.store.acknowledge(data.draw(st.integers(0, len(self.entries))))

    @rule(data=st.data(), most=st.integers(0, 600))
    def read(self, data: st.DataObject, most: int) -> None:
        at = data.draw(st.integers(0, len(self.entries) + 2))
        found = self.store.read(at, most)
        if not self.store.first <= at < len(self.entries):
            assert found == b""
            return
        count = len(list(parse_entries(found)))
        assert found == b"".join(self.entries[at : at + count])
        assert count == 1 or len(found) <= most
        more = self.entries[at : at + count + 1]
        assert len(more) == count or len(b"".join(more)) > most

    @rule()
    def root(self) -> None:
        self.roots[len(self.entries)] = self.store.root()

    @rule()
    def restart(self) -> None:
        state = json.loads(json.dumps(self.store.dump()))
        self.store = LogStore(self.memory, lambda: 7)  # type: ignore[arg-type]
        self.store.load(state)

    @rule(data=st.data())
    def proofs(self, data: st.DataObject) -> None:
        size, first = len(self.entries), self.store.first
        if first == size:
            return
        index = data.draw(st.integers(first, size - 1))
        proof = self.store.inclusion(index, size)
        assert proof is not None
        assert verify_inclusion(index, size, leaf_hash(self.entries[index]), proof, self.store.root())
        for old, root in self.roots.items():
            path = self.store.consistency(old, size)
            if max(first, 1) <= old:
                assert path is not None
                assert verify_consistency(old, size, root, self.store.root(), path)
            else:
                assert path is None
        assert self.store.inclusion(first - 1, size) is None
        assert self.store.inclusion(size, size + 1) is None

    @invariant()
    def agrees(self) -> None:
        tree = CompactRange()
        for raw in self.entries:
            tree.append(leaf_hash(raw))
        assert self.store.root() == tree.root()
        assert self.store.next == len(self.entries)
        assert self.store.free == SIZE - self.held
        beginning = self.store.range_at_first()
        assert beginning.size == self.store.first
        for raw in self.entries[self.store.first :]:
            beginning.append(leaf_hash(raw))
        assert beginning.root() == tree.root()


def test_as_many_entries_as_fit_are_read() -> None:
    """To the byte, and one though it be too long."""
    store = LogStore(Memory(), lambda: 7)  # type: ignore[arg-type]
    for length in (10, 20, 100):
        store.append(EntryKind.RECORDS, bytes(length))
    ends = [ENTRY_HEADER.size + 10, 2 * ENTRY_HEADER.size + 30, 3 * ENTRY_HEADER.size + 130]
    for most in range(ends[-1] + 2):
        assert len(store.read(0, most)) == max((end for end in ends if end <= most), default=ends[0])


def test_entries_that_end_where_the_memory_does() -> None:
    """And one byte before, and one behind."""
    for over in (-1, 0, 1):
        store = LogStore(Memory(), lambda: 7)  # type: ignore[arg-type]
        store.append(EntryKind.RECORDS, bytes(500))
        store.acknowledge(1)
        length = SIZE - 2 * ENTRY_HEADER.size - 500 + over
        body = bytes(at % 251 for at in range(length))
        store.append(EntryKind.RECORDS, body)
        (entry,) = parse_entries(store.read(1, SIZE))
        assert entry.body == body


def test_a_head_and_proofs_take_few_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask as often as he likes: it must not depend on how much is kept, nor on who asked before."""
    hashes = 0

    def sha256(data: bytes) -> Any:
        nonlocal hashes
        hashes += 1
        return hashlib.sha256(data)

    memory = Memory(1 << 20)
    store = LogStore(memory, lambda: 7)  # type: ignore[arg-type]
    monkeypatch.setattr(merkle, "hashlib", SimpleNamespace(sha256=sha256))
    for number in range(10_000):
        before = hashes
        store.append(EntryKind.RECORDS, b"record")
        assert hashes - before <= 1 + number.bit_length()
    assert hashes <= 2 * 10_000
    asked: list[Callable[[], object]] = [
        store.root,
        lambda: store.inclusion(77, 9_999),
        lambda: store.inclusion(0, 10_000),
        lambda: store.consistency(1, 10_000),
        lambda: store.consistency(5_001, 9_999),
    ]
    for ask in asked:
        hashes = 0
        assert ask()
        assert hashes <= 2 * 14
    assert not memory.reads


TestStore = Store.TestCase
TestStore.settings = settings(deadline=None, max_examples=examples(60))
