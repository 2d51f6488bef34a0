# SPDX-License-Identifier: GPL-2.0-or-later
"""Merkle trees of append-only logs (RFC 9162, section 2.1): roots, and proofs of inclusion and consistency."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from veil.formats.errors import FormatError

__all__ = [
    "EMPTY_ROOT",
    "CompactRange",
    "MerkleTree",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES = 32
#: the root of a tree without leaves
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of an entry."""
    return hashlib.sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class CompactRange:
    """The first leaves of a tree: the roots of its perfect subtrees, largest first. All that appending needs."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Raises FormatError unless there is one hash for each bit of `size`."""
        if size < 0 or len(hashes) != size.bit_count() or any(len(item) != HASH_BYTES for item in hashes):
            raise FormatError(f"{len(hashes)} hashes are no compact range of {size} leaves")
        self.size = size
        self.hashes = list(hashes)

    def append(self, leaf: bytes) -> None:
        """One more leaf, by its hash."""
        hashes, size = self.hashes, self.size
        while size & 1:
            leaf = _node(hashes.pop(), leaf)
            size >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The tree's root."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = _node(left, root)
        return root

    def copy(self) -> CompactRange:
        """One that goes its own way."""
        return CompactRange(self.size, self.hashes)


class MerkleTree:
    """A growing tree that keeps its inner nodes: appending costs two hashes on average, roots and proofs O(log size).

    Nodes of leaves that were forgotten go too, but for those that proofs about later leaves need, at most one a level.
    A leaf that is kept costs 64 bytes with its share of the inner nodes.
    """

    def __init__(self, beginning: CompactRange | None = None) -> None:
        """`beginning`: what is kept of leaves that are forgotten already."""
        beginning = beginning or CompactRange()
        self.size = self.first = beginning.size
        #: by level: the roots of perfect subtrees of 1 << level leaves, from number `_starts[level]` on
        self._levels: list[bytearray] = []
        self._starts: list[int] = []
        hashes = iter(reversed(beginning.hashes))
        for level in range(self.size.bit_length()):
            odd = self.size >> level & 1
            self._levels.append(bytearray(next(hashes) if odd else b""))
            self._starts.append((self.size >> level) - odd)

    def append(self, leaf: bytes) -> None:
        """One more leaf, by its hash."""
        levels = self._levels
        size = self.size
        self.size = size + 1
        level = 0
        while True:
            if level == len(levels):
                levels.append(bytearray())
                self._starts.append(0)
            nodes = levels[level]
            nodes += leaf
            if not size & 1:
                return
            leaf = hashlib.sha256(b"\1" + nodes[-2 * HASH_BYTES :]).digest()
            size >>= 1
            level += 1

    def forget(self, first: int) -> None:
        """No proofs about leaves below `first` any more; it is at most `size`."""
        self.first = first
        for level, nodes in enumerate(self._levels):
            start = (first >> level) & ~1
            if start > self._starts[level]:
                del nodes[: (start - self._starts[level]) * HASH_BYTES]
                self._starts[level] = start

    def range_at(self, size: int) -> CompactRange:
        """The compact range of the first `size` leaves, which are at least `first` and at most all."""
        return CompactRange(size, self._pieces(0, size))

    def root(self) -> bytes:
        """The root of all leaves."""
        return self.range_at(self.size).root()

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path of a leaf that is not forgotten in the tree of the first `size` leaves."""
        return inclusion_proof(index, size, self._subtree)

    def consistency(self, first: int, second: int) -> list[bytes]:
        """That the tree of `first` leaves, which are not below `self.first`, is the beginning of that of `second`."""
        return consistency_proof(first, second, self._subtree)

    def _subtree(self, start: int, end: int) -> bytes:
        return CompactRange(end - start, self._pieces(start, end)).root()

    def _pieces(self, start: int, end: int) -> list[bytes]:
        """The perfect subtrees of [start, end), where `start` is a multiple of the largest one's size."""
        hashes = []
        for level in range((end - start).bit_length() - 1, -1, -1):
            if (end - start) >> level & 1:
                at = ((end >> level) - 1 - self._starts[level]) * HASH_BYTES
                hashes.append(bytes(self._levels[level][at : at + HASH_BYTES]))
        return hashes


#: The root of the subtree over leaves [start, end).
Subtree = Callable[[int, int], bytes]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """The path of a leaf in the tree of the first `size` leaves (RFC 9162, 2.1.3.1)."""
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(start, middle))
            start = middle
    return path[::-1]


def verify_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes) -> bool:
    """Is the leaf (its hash) in the tree with this root, at this place (RFC 9162, 2.1.3.2)?"""
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, leaf
    for item in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = _node(item, found)
            while fn and not fn & 1:
                fn >>= 1
                sn >>= 1
        else:
            found = _node(found, item)
        fn >>= 1
        sn >>= 1
    return sn == 0 and found == root


def consistency_proof(first: int, second: int, subtree: Subtree) -> list[bytes]:
    """That the tree of `first` leaves is the beginning of that of `second` (RFC 9162, 2.1.4.1)."""
    path: list[bytes] = []
    start, end, m, whole = 0, second, first, True
    while m != end - start:
        middle = _split(end - start)
        if m <= middle:
            path.append(subtree(start + middle, end))
            end = start + middle
        else:
            path.append(subtree(start, start + middle))
            start += middle
            m -= middle
            whole = False
    if not whole:
        path.append(subtree(start, end))
    return path[::-1]


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Is the first tree the beginning of the second (RFC 9162, 2.1.4.2)?"""
    if not 0 <= first <= second:
        return False
    if first == second:
        return not path and first_root == second_root
    if first == 0:
        return not path and first_root == EMPTY_ROOT
    items = list(path)
    if first & (first - 1) == 0:
        items.insert(0, first_root)
    if not items:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    fr = sr = items[0]
    for item in items[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr = _node(item, fr)
            sr = _node(item, sr)
            while fn and not fn & 1:
                fn >>= 1
                sn >>= 1
        else:
            sr = _node(sr, item)
        fn >>= 1
        sn >>= 1
    return sn == 0 and fr == first_root and sr == second_root
