# SPDX-License-Identifier: GPL-2.0-or-later
"""Merkle trees against the definitions of RFC 9162, written down once more as they stand there."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from veil.formats.errors import FormatError
from veil.formats.merkle import (
    EMPTY_ROOT,
    CompactRange,
    MerkleTree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)


def mth(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, of leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


LEAVES = [leaf_hash(b"%d" % number) for number in range(40)]


def subtree(start: int, end: int) -> bytes:
    return mth(LEAVES[start:end])


def test_known_values() -> None:
    """Certificate Transparency's test tree (RFC 6962's reference implementation)."""
    data = [
        b"", b"\x00", b"\x10", b"\x20\x21", b"\x30\x31", b"\x40\x41\x42\x43", bytes(range(0x50, 0x58)),
        bytes(range(0x60, 0x70)),
    ]  # fmt: skip
    tree = CompactRange()
    for item in data:
        tree.append(leaf_hash(item))
    assert tree.root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert CompactRange().root() == EMPTY_ROOT


@pytest.mark.parametrize("size", range(41))
def test_compact_ranges(size: int) -> None:
    tree = CompactRange()
    for leaf in LEAVES[:size]:
        tree.append(leaf)
    assert tree.root() == mth(LEAVES[:size])
    again = CompactRange(size, tree.hashes)
    for leaf in LEAVES[size:]:
        again.append(leaf)
    assert again.root() == mth(LEAVES)
    assert tree.copy().root() == tree.root()
    for wrong in (tree.hashes[1:], [*tree.hashes, bytes(32)]):
        if len(wrong) != size.bit_count():
            with pytest.raises(FormatError):
                CompactRange(size, wrong)


def test_inclusion() -> None:
    for size in range(1, len(LEAVES) + 1):
        root = mth(LEAVES[:size])
        for index in range(size):
            path = inclusion_proof(index, size, subtree)
            assert verify_inclusion(index, size, LEAVES[index], path, root)
            assert not verify_inclusion(index, size, LEAVES[(index + 1) % 40], path, root)
            assert not verify_inclusion(index, size, LEAVES[index], [*path, bytes(32)], root)
            if path:
                assert not verify_inclusion(index, size, LEAVES[index], path[:-1], root)
        assert not verify_inclusion(size, size, LEAVES[0], [], root)


def test_consistency() -> None:
    for second in range(1, len(LEAVES) + 1):
        for first in range(1, second + 1):
            path = consistency_proof(first, second, subtree)
            one, two = mth(LEAVES[:first]), mth(LEAVES[:second])
            assert verify_consistency(first, second, one, two, path)
            assert not verify_consistency(first, second, bytes(32), two, path)
            assert not verify_consistency(first, second, one, bytes(32), path)
            assert not verify_consistency(first, second, one, two, [*path, bytes(32)])
            if first != second:
                assert not verify_consistency(first, second, two, one, path)
    assert verify_consistency(0, 5, EMPTY_ROOT, mth(LEAVES[:5]), [])
    assert not verify_consistency(6, 5, mth(LEAVES[:6]), mth(LEAVES[:5]), [])


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=20), st.integers(0, 9), st.data())
def test_a_tree_that_keeps_its_nodes(moves: list[tuple[bool, int]], beginning: int, data: st.DataObject) -> None:
    """Leaves come and are forgotten; what it says of those that are left is what the definitions say."""
    leaves = LEAVES[:beginning]
    start = CompactRange()
    for leaf in leaves:
        start.append(leaf)
    tree = MerkleTree(start)
    for forget, count in moves:
        if forget:
            tree.forget(min(tree.first + count, tree.size))
        else:
            for number in range(count):
                leaves.append(leaf_hash(b"more %d" % (len(leaves) + number)))
                tree.append(leaves[-1])

    def part(start: int, end: int) -> bytes:
        return mth(leaves[start:end])

    size, first = len(leaves), tree.first
    assert tree.size == size
    assert tree.root() == mth(leaves)
    assert tree.range_at(first).root() == mth(leaves[:first])
    # Of what is forgotten, a node a level at most.
    assert sum(map(len, tree._levels)) // 32 <= 2 * (size - first) + 2 * size.bit_length()
    if first < size:
        index = data.draw(st.integers(first, size - 1))
        at = data.draw(st.integers(index + 1, size))
        assert tree.inclusion(index, at) == inclusion_proof(index, at, part)
    if size:
        old = data.draw(st.integers(max(first, 1), size))
        at = data.draw(st.integers(old, size))
        assert tree.consistency(old, at) == consistency_proof(old, at, part)


@given(st.integers(1, 40), st.data())
def test_changed_history(size: int, data: st.DataObject) -> None:
    """A log that changed one of its first entries cannot prove that it did not."""
    first = data.draw(st.integers(1, size))
    at = data.draw(st.integers(0, first - 1))
    forged = list(LEAVES[:size])
    forged[at] = bytes(32)
    path = consistency_proof(first, size, lambda start, end: mth(forged[start:end]))
    assert not verify_consistency(first, size, mth(LEAVES[:first]), mth(forged), path)
