# SPDX-License-Identifier: GPL-2.0-or-later
"""What remote users call: readers fetch entries and proofs, owners acknowledge and set audit rules."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from veil.formats.log import ACKNOWLEDGE_CALL, FETCH_CALL, PROOF_CALL, RANGE_ANSWER, EntryKind, Head, UserCall
from veil.formats.roles import Call, Role
from veil.formats.status import Status
from veil.services.interface import Refused, User, UserHandler
from veil.services.log.audit_rules import AuditRules
from veil.services.log.store import LogStore
from veil.services.log.when_full import Writer

__all__ = ["USER_CALLS"]

_MAX_FETCH = 224 << 10


class _Log(Protocol):
    """The service, as far as users get to it."""

    store: LogStore
    writer: Writer
    rules: AuditRules

    def head(self) -> Head: ...


# Readers


def _head(log: _Log, user: User, body: bytes) -> bytes:
    return log.head().pack()


def _fetch(log: _Log, user: User, body: bytes) -> bytes:
    sequence, most = _arguments(FETCH_CALL, body)
    return log.store.read(sequence, min(most, _MAX_FETCH))


def _range(log: _Log, user: User, body: bytes) -> bytes:
    found = log.store.range_at_first()
    return RANGE_ANSWER.pack(found.size) + b"".join(found.hashes)


def _inclusion(log: _Log, user: User, body: bytes) -> bytes:
    return _proof(log.store.inclusion(*_arguments(PROOF_CALL, body)))


def _consistency(log: _Log, user: User, body: bytes) -> bytes:
    return _proof(log.store.consistency(*_arguments(PROOF_CALL, body)))


def _rules(log: _Log, user: User, body: bytes) -> bytes:
    return log.rules.state()


# Owners


def _acknowledge(log: _Log, user: User, body: bytes) -> bytes:
    (upto,) = _arguments(ACKNOWLEDGE_CALL, body)
    if upto > log.store.next:
        raise Refused(Status.BAD_REQUEST, f"there are {log.store.next} entries, not {upto}")
    log.store.acknowledge(upto)
    log.writer.acknowledged()
    return b""


def _set_rules(log: _Log, user: User, text: bytes) -> bytes:
    assert user.fingerprint is not None  # by which VeilMon knows an owner
    log.rules.check(text)
    why = "the log is full, and rules that are not in it must not be set"
    log.writer.append_or_refuse(EntryKind.RULES, user.fingerprint + text, why)
    return log.rules.want(text)


USER_CALLS: Mapping[int, Call[UserHandler]] = {
    # Records have in them what programs and people did: no business of whoever can open a connection, the host's
    # above all.
    UserCall.HEAD: Call(Role.READER, _head),
    UserCall.FETCH: Call(Role.READER, _fetch),
    UserCall.RANGE: Call(Role.READER, _range),
    UserCall.INCLUSION: Call(Role.READER, _inclusion),
    UserCall.CONSISTENCY: Call(Role.READER, _consistency),
    UserCall.RULES: Call(Role.READER, _rules),
    # Anyone who can have entries forgotten can remove evidence.
    UserCall.ACKNOWLEDGE: Call(Role.OWNER, _acknowledge),
    # Anyone who chooses the rules chooses what leaves no trace.
    UserCall.SET_RULES: Call(Role.OWNER, _set_rules),
}


def _arguments(shape: struct.Struct, body: bytes) -> tuple[Any, ...]:
    try:
        return shape.unpack(body)
    except struct.error:
        raise Refused(Status.BAD_REQUEST, f"this call of the log has {shape.size} bytes of arguments") from None


def _proof(hashes: Sequence[bytes] | None) -> bytes:
    if hashes is None:
        raise Refused(Status.BAD_REQUEST, "the log has no proof of that: out of range, or acknowledged")
    return b"".join(hashes)
