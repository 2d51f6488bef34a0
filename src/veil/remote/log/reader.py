# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch VeilS-LOG's entries over an attested channel, and verify each against a signed head.

What was verified is remembered (`LogState`): the next time, a log that lost, changed or reordered what it had, or that
goes on from an older state of the machine, does not fit to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from veil.formats.errors import FormatError
from veil.formats.log import (
    ACKNOWLEDGE_CALL,
    FETCH_CALL,
    LOG_GUID,
    RANGE_ANSWER,
    RULES_ANSWER,
    Head,
    LogEntry,
    LogManifest,
    RulesState,
    UserCall,
    parse_entries,
)
from veil.formats.merkle import CompactRange, leaf_hash
from veil.formats.numbers import u64
from veil.remote.channel.client import ChannelClient
from veil.remote.errors import RemoteError, VerificationFailed

__all__ = ["LogReader", "LogState", "Sighting", "check_head"]

_CHUNK = 192 << 10


@dataclass(frozen=True)
class Sighting:
    """A head, and when it came: nanoseconds since 1970 by the user's own clock, before asking and after the answer.

    A new head is made for each request, and the channel lets nobody keep an answer for later: the machine's time in it
    is a time between the two.
    """

    head: Head
    asked_ns: int
    answered_ns: int

    def wall_ns(self, time_ns: int) -> int:
        """A time of the machine by the user's clock; good for times that no snapshot was restored after."""
        return self.answered_ns - (self.head.time_ns - time_ns)


@dataclass
class LogState:
    """What a user knows of a log: its key, and the tree of all entries that were verified."""

    key: bytes
    tree: CompactRange
    begin: CompactRange = field(default_factory=CompactRange)
    """compact range of the entries acknowledged before this user's first fetch; they can no longer be fetched"""
    seen: Sighting | None = None
    """the head that `tree` was compared with last"""

    def dump(self) -> dict[str, Any]:
        """For a file."""
        value: dict[str, Any] = {"key": self.key.hex(), **_dump_range(self.tree), "begin": _dump_range(self.begin)}
        if self.seen is not None:
            value["head"] = self.seen.head.pack().hex()
            value["asked_ns"], value["answered_ns"] = self.seen.asked_ns, self.seen.answered_ns
        return value

    @classmethod
    def load(cls, state: dict[str, Any]) -> LogState:
        """From `dump`; raises FormatError."""
        try:
            seen = None
            if "head" in state:
                head = Head.parse(bytes.fromhex(state["head"]))
                seen = Sighting(head, u64(state["asked_ns"]), u64(state["answered_ns"]))
            begin = _load_range(state["begin"]) if "begin" in state else CompactRange()
            return cls(bytes.fromhex(state["key"]), _load_range(state), begin, seen)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise FormatError(f"the kept state of the log is unreadable: {error!r}") from error

    def pack(self) -> bytes:
        """JSON."""
        return json.dumps(self.dump(), indent=1).encode()


def _dump_range(tree: CompactRange) -> dict[str, Any]:
    return {"size": tree.size, "hashes": [item.hex() for item in tree.hashes]}


def _load_range(state: dict[str, Any]) -> CompactRange:
    return CompactRange(u64(state["size"]), [bytes.fromhex(item) for item in state["hashes"]])


def check_head(head: Head, key: bytes) -> None:
    """Raises VerificationFailed unless the log's key signed the head; FormatError, RemoteError for other keys."""
    _check_signature(head, _load_key(key))


def _check_signature(head: Head, key: ec.EllipticCurvePublicKey) -> None:
    try:
        key.verify(head.signature, head.signed_bytes, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise VerificationFailed("the log's head is not signed by the log's key") from None


class LogReader:
    """Reads one CVM's log. The channel must have been attested: `manifest` is the log's, out of that attestation."""

    def __init__(self, client: ChannelClient, manifest: bytes, *, known: LogState | None = None) -> None:
        """`known` is what was verified before. Raises VerificationFailed if this is another log."""
        self._client = client
        self.manifest = LogManifest.parse(manifest)
        if known is not None and known.key != self.manifest.key:
            raise VerificationFailed(
                "this is another log than the one known from last time: the CVM was launched again, or is another one"
            )
        self._key = _load_key(self.manifest.key)
        self.state = known or LogState(self.manifest.key, CompactRange())
        self._fresh = known is None
        self._last: Sighting | None = None

    def head(self) -> Head:
        """The log's state now, its signature verified, not older than what is known. Raises VerificationFailed."""
        asked = time.time_ns()
        head = Head.parse(self._client.request(LOG_GUID, UserCall.HEAD))
        self._last = Sighting(head, asked, time.time_ns())
        _check_signature(head, self._key)
        known = self.state.tree
        if head.size < known.size:
            raise VerificationFailed(
                f"the log has {head.size} entries, {known.size} were verified before: the machine was taken back to an "
                "older state, or entries were removed"
            )
        if head.size == known.size and head.root != known.root():
            raise VerificationFailed("the log's entries are not those that were verified before: it was forked")
        seen = self.state.seen
        if seen is not None and (head.time_ns < seen.head.time_ns or head.dropped < seen.head.dropped):
            # Also when nothing was logged in between: a full log has no room to say that it was restored.
            raise VerificationFailed("the log's time or count went back: the machine was taken back to an older state")
        return head

    def fetch(self, head: Head | None = None) -> Iterator[LogEntry]:
        """The entries that are not known yet, up to a head; each yielded only when it is part of that head.

        All entries up to the head are held at a time: what is not verified is shown to nobody. Raises
        VerificationFailed.
        """
        head = head or self.head()
        tree = self._begin(head)
        tree_begin = tree.copy()
        entries: list[LogEntry] = []
        while tree.size < head.size:
            data = self._client.request(LOG_GUID, UserCall.FETCH, FETCH_CALL.pack(tree.size, _CHUNK))
            before = tree.size
            for entry in parse_entries(data):
                if entry.sequence != tree.size:
                    raise VerificationFailed(f"log entry {entry.sequence} came where {tree.size} was due")
                if tree.size == head.size:
                    break
                tree.append(leaf_hash(entry.raw))
                entries.append(entry)
            if tree.size == before:
                raise VerificationFailed(f"the log has {head.size} entries and does not give number {before}")
        if tree.root() != head.root:
            raise VerificationFailed(
                f"the entries up to number {head.size} are not those of the signed head: at least one was changed, or "
                "the log was forked after it was verified last"
            )
        seen = self._last if self._last is not None and self._last.head == head else self.state.seen
        begin = tree_begin if self._fresh else self.state.begin
        self.state = LogState(self.state.key, tree, begin, seen)
        self._fresh = False
        yield from entries

    def _begin(self, head: Head) -> CompactRange:
        tree = self.state.tree.copy()
        if head.first <= tree.size:
            return tree
        if not self._fresh:
            raise VerificationFailed(
                f"entries {tree.size} to {head.first - 1} were acknowledged by somebody else before they were read here"
            )
        data = self._client.request(LOG_GUID, UserCall.RANGE)
        if len(data) < RANGE_ANSWER.size or (len(data) - RANGE_ANSWER.size) % 32:
            raise FormatError(f"a compact range of {len(data)} bytes")
        (size,) = RANGE_ANSWER.unpack_from(data)
        parts = [data[at : at + 32] for at in range(RANGE_ANSWER.size, len(data), 32)]
        if not size <= head.size:
            raise VerificationFailed("the log forgot more than it has")
        return CompactRange(size, parts)

    def acknowledge(self) -> int:
        """Let the log forget what was verified here; owners only. Returns how many entries that are."""
        size = self.state.tree.size
        self._client.request(LOG_GUID, UserCall.ACKNOWLEDGE, ACKNOWLEDGE_CALL.pack(size))
        return size

    def set_rules(self, text: bytes) -> int:
        """Have the kernel given these audit rules, lines for auditctl; owners only. Returns their generation."""
        data = self._client.request(LOG_GUID, UserCall.SET_RULES, text)
        if len(data) != RULES_ANSWER.size:
            raise FormatError(f"a generation of audit rules of {len(data)} bytes")
        return int(RULES_ANSWER.unpack(data)[0])

    def rules(self) -> RulesState:
        """The rules that are wanted, and what the kernel says of them."""
        return RulesState.parse(self._client.request(LOG_GUID, UserCall.RULES))


def _load_key(data: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(data)
    except Exception as error:
        raise FormatError(f"the log's key is unreadable: {error!r}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RemoteError("the log's key is of another kind than heads are signed with")
    return key
