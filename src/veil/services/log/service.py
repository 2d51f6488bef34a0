# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG: keeps what the kernel's audit says, answers remote users."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from veil.formats.log import (
    ACKNOWLEDGE_CALL,
    ENTRY_HEADER,
    FETCH_CALL,
    LOG_GUID,
    LOG_NUMBER,
    PROOF_CALL,
    RANGE_ANSWER,
    EntryKind,
    Head,
    KernelCall,
    LogManifest,
    ServiceWord,
    Silence,
    UserCall,
)
from veil.formats.log_settings import HALT, LogSettings
from veil.formats.roles import Call, Role
from veil.formats.status import Status
from veil.services.interface import KernelRequest, Refused, Service, User, UserHandler
from veil.services.log.rules import Rules
from veil.services.log.silence import Ear
from veil.services.log.store import LogFull, LogStore

__all__ = ["LogService"]

_MAX_FETCH = 224 << 10
_U64 = struct.Struct("<Q")
#: Room that the kernel's calls leave free, so that the service can still record that they found no room.
_RESERVE = ENTRY_HEADER.size + _U64.size

#: Words of other services that wait for room.
_MAX_WORDS = 64

#: what a call of the kernel's appends
_KINDS: dict[int, EntryKind] = {
    KernelCall.RECORDS: EntryKind.RECORDS,
    KernelCall.INTENT: EntryKind.INTENT,
    KernelCall.HEARTBEAT: EntryKind.HEARTBEAT,
}


class LogService(Service):
    """A ring of entries that only grows until an owner acknowledges; see `LogSettings`."""

    name = "log"
    number = LOG_NUMBER
    guid: ClassVar[uuid.UUID] = LOG_GUID
    settings_type = LogSettings

    def __init__(self) -> None:
        self._store: LogStore | None = None
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._full = HALT
        self._last_ns = 0
        self._dropped = self._untold = 0
        self._resumed = b""  # the nonce of a resumption that is not in the log yet
        self._rules = Rules()
        self._ear = Ear(0)
        self._quiet: Silence | None = None  # not in the log yet
        self._words: list[bytes] = []  # nor are these, of other services

    def start(self, settings: dict[str, Any]) -> None:
        """An empty log with a key of its own."""
        self._configure(settings)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._ear = Ear(self.now())
        self.store.append(EntryKind.STARTED, self.now(), b"")

    def _configure(self, settings: dict[str, Any]) -> None:
        self._full = LogSettings.of(settings).full
        self._store = LogStore(self.memory)

    @property
    def store(self) -> LogStore:
        """The entries."""
        assert self._store is not None
        return self._store

    # The kernel

    def kernel_request(self, request: KernelRequest) -> bytes:
        """Append. Records are not inspected here; their reader judges them."""
        call, body = request.call, request.body
        kind = _KINDS.get(call)
        if kind is None:
            if call == KernelCall.RULES:
                return self._rules.exchange(body)
            raise Refused(Status.UNKNOWN_CALL, f"the log has no call {call} for the kernel")
        now = self._last_ns = self.now()
        self._owe(self._ear.heard(now, beat=kind == EntryKind.HEARTBEAT))
        try:
            if self._resumed or self._untold or self._quiet or self._words:
                self._tell(now)
            self.store.append(kind, now, body, reserve=_RESERVE)
        except LogFull:
            if self._full == HALT:
                raise Refused(Status.FULL, "the log is full") from None
            self._dropped += 1
            self._untold += 1
        return self._rules.wanted() if kind == EntryKind.HEARTBEAT else b""

    def _tell(self, now: int) -> None:
        """Append what the service had to say when there was no room. Raises LogFull."""
        if self._resumed:
            self.store.append(EntryKind.RESUMED, now, self._resumed)
            self._resumed = b""
        while self._words:
            self.store.append(EntryKind.WORD, now, self._words[0], reserve=_RESERVE)
            del self._words[0]
        if self._untold:
            self.store.append(EntryKind.DROPPED, now, _U64.pack(self._untold))
            self._untold = 0
        if self._quiet is not None:
            self.store.append(EntryKind.SILENCE, now, self._quiet.pack(), reserve=_RESERVE)
            self._quiet = None

    def _owe(self, silence: Silence | None) -> None:
        if silence is not None and (self._quiet is None or silence > self._quiet):
            self._quiet = silence

    def keep_word(self, service: int, word: bytes) -> bool:
        """An entry of its own: now, or when there is room. When too many wait they count as dropped."""
        if len(self._words) < _MAX_WORDS:
            self._words.append(ServiceWord(service, word).pack())
        else:
            self._dropped += 1
            self._untold += 1
        with suppress(LogFull):
            self._tell(self.now())
        return True

    def ran(self) -> None:
        """Time passes, and the kernel may be silent: said at once, for such a kernel may never call again."""
        now = self.now()
        self._owe(self._ear.ran(now))
        if self._quiet is not None:
            with suppress(LogFull):
                self._tell(now)

    # Users

    def _tell_head(self, user: User, body: bytes) -> bytes:
        return self._head().pack()

    def _fetch(self, user: User, body: bytes) -> bytes:
        sequence, most = _arguments(FETCH_CALL, body)
        return self.store.read(sequence, min(most, _MAX_FETCH))

    def _range(self, user: User, body: bytes) -> bytes:
        found = self.store.range_at_first()
        return RANGE_ANSWER.pack(found.size) + b"".join(found.hashes)

    def _inclusion(self, user: User, body: bytes) -> bytes:
        return _proof(self.store.inclusion(*_arguments(PROOF_CALL, body)))

    def _consistency(self, user: User, body: bytes) -> bytes:
        return _proof(self.store.consistency(*_arguments(PROOF_CALL, body)))

    def _tell_rules(self, user: User, body: bytes) -> bytes:
        return self._rules.state()

    def _acknowledge(self, user: User, body: bytes) -> bytes:
        (upto,) = _arguments(ACKNOWLEDGE_CALL, body)
        if upto > self.store.next:
            raise Refused(Status.BAD_REQUEST, f"there are {self.store.next} entries, not {upto}")
        self.store.acknowledge(upto)
        # At once, not with the kernel's next call: a kernel that was taken over may make none.
        with suppress(LogFull):
            self._tell(self.now())
        return b""

    def _set_rules(self, user: User, text: bytes) -> bytes:
        assert user.fingerprint is not None  # by which VeilMon knows an owner
        self._rules.check(text)
        try:
            self._tell(self.now())
            self.store.append(EntryKind.RULES, self.now(), user.fingerprint + text, reserve=_RESERVE)
        except LogFull:
            raise Refused(Status.FULL, "the log is full, and rules that are not in it must not be set") from None
        return self._rules.want(text)

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        # Records have in them what programs and people did: no business of whoever can open a connection, the host's
        # above all.
        UserCall.HEAD: Call(Role.READER, _tell_head),
        UserCall.FETCH: Call(Role.READER, _fetch),
        UserCall.RANGE: Call(Role.READER, _range),
        UserCall.INCLUSION: Call(Role.READER, _inclusion),
        UserCall.CONSISTENCY: Call(Role.READER, _consistency),
        UserCall.RULES: Call(Role.READER, _tell_rules),
        # Anyone who can have entries forgotten can remove evidence.
        UserCall.ACKNOWLEDGE: Call(Role.OWNER, _acknowledge),
        # Anyone who chooses the rules chooses what leaves no trace.
        UserCall.SET_RULES: Call(Role.OWNER, _set_rules),
    }

    def _head(self) -> Head:
        assert self._key is not None
        store = self.store
        head = Head(store.next, store.first, self.now(), self._last_ns, self._dropped, store.root(), b"")
        signature = self._key.sign(head.signed_bytes, ec.ECDSA(hashes.SHA256()))
        return Head(head.size, head.first, head.time_ns, head.last_ns, head.dropped, head.root, signature)

    def manifest(self) -> bytes:
        """The key that signs heads, and the settings."""
        assert self._key is not None
        key = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return LogManifest(key, self.memory.size, self._full).pack()

    # Snapshots

    def save(self) -> bytes:
        """The key, and where in the memory is what."""
        assert self._key is not None
        key = self._key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        state = {
            "store": self.store.dump(),
            "key": key.hex(),
            "last_ns": self._last_ns,
            "dropped": self._dropped,
            "untold": self._untold,
            "resumed": self._resumed.hex(),
            "rules": self._rules.dump(),
            "beats": self._ear.beats,
            "quiet": self._quiet,
            "words": [word.hex() for word in self._words],
        }
        return json.dumps(state).encode()

    def restore(self, settings: dict[str, Any], data: bytes) -> None:
        """Goes on, and says in the log that it was restored: two machines from one snapshot have different logs."""
        state = json.loads(data)
        self._configure(settings)
        self.store.load(state["store"])
        key = serialization.load_der_private_key(bytes.fromhex(state["key"]), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._rules.load(state["rules"])
        self._ear = Ear(self.now(), beats=state["beats"])
        self._quiet = Silence(*state["quiet"]) if state["quiet"] else None
        self._words = [bytes.fromhex(word) for word in state["words"]]
        self._last_ns, self._dropped, self._untold = state["last_ns"], state["dropped"], state["untold"]
        # Without room for it now it is said later: the host could resume two machines when the log is full, and their
        # logs would go on alike.
        self._resumed = self.nonce()
        with suppress(LogFull):
            self._tell(self.now())


def _arguments(shape: struct.Struct, body: bytes) -> tuple[Any, ...]:
    try:
        return shape.unpack(body)
    except struct.error:
        raise Refused(Status.BAD_REQUEST, f"this call of the log has {shape.size} bytes of arguments") from None


def _proof(hashes: Sequence[bytes] | None) -> bytes:
    if hashes is None:
        raise Refused(Status.BAD_REQUEST, "the log has no proof of that: out of range, or acknowledged")
    return b"".join(hashes)
