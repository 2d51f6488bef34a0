# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG: its parts, their life from launch to snapshot and on, what attestation says of it."""

from __future__ import annotations

import json
import uuid
from typing import Any, ClassVar

from veil.formats.log import LOG_GUID, LOG_NUMBER, EntryKind, Head, LogManifest, ServiceWord
from veil.formats.log_settings import LogSettings
from veil.services.context import LogSpan
from veil.services.interface import KernelRequest, Service
from veil.services.log.audit_rules import AuditRules
from veil.services.log.head_key import HeadKey
from veil.services.log.kernel_calls import KernelCalls
from veil.services.log.silence import Ear
from veil.services.log.store import LogStore
from veil.services.log.user_calls import USER_CALLS
from veil.services.log.when_full import Writer

__all__ = ["LogService"]


class LogService(Service):
    """A ring of entries that only grows until an owner acknowledges; see `LogSettings`."""

    name = "log"
    number = LOG_NUMBER
    guid: ClassVar[uuid.UUID] = LOG_GUID
    settings_type = LogSettings
    user_calls = USER_CALLS

    store: LogStore
    writer: Writer
    rules: AuditRules
    kernel: KernelCalls
    key: HeadKey

    def start(self, settings: dict[str, Any]) -> None:
        """An empty log with a key of its own."""
        self._assemble(settings, HeadKey.generate(), Ear(self.now()))
        self.store.append(EntryKind.STARTED, b"")

    def _assemble(self, settings: dict[str, Any], key: HeadKey, ear: Ear) -> None:
        self._full = LogSettings.of(settings).full
        self.store = LogStore(self.memory, self.now)
        self.writer = Writer(self.store, self._full, self.context.log_shares)
        self.rules = AuditRules()
        self._ear = ear
        self.kernel = KernelCalls(self.writer, self.rules, ear, self.now)
        self.key = key

    def kernel_request(self, request: KernelRequest) -> bytes:
        """See `kernel_calls`."""
        return self.kernel.answer(request)

    def keep_word(self, service: int, word: bytes, *, urgent: bool = False) -> bool:
        """An entry of its own: now, or when there is room."""
        self.writer.word(ServiceWord(service, word), urgent=urgent)
        return True

    def log_span(self) -> LogSpan:
        """The ring, its head and its tail."""
        return self.store.span

    def ran(self) -> None:
        """Time passes, and the kernel may be silent: said at once, for such a kernel may never call again."""
        silence = self._ear.ran(self.now())
        if silence is not None:
            self.writer.silent(silence)

    def head(self) -> Head:
        """What is in the log now, signed."""
        store = self.store
        return self.key.sign(
            Head(store.next, store.first, self.now(), self.kernel.last_ns, self.writer.dropped, store.root(), b"")
        )

    def manifest(self) -> bytes:
        """The key that signs heads, and the settings."""
        return LogManifest(self.key.public, self.memory.size, self._full).pack()

    # Snapshots

    def save(self) -> bytes:
        """The key, and where in the memory is what."""
        state = {
            "store": self.store.dump(),
            "writer": self.writer.dump(),
            "rules": self.rules.dump(),
            "key": self.key.dump(),
            "last_ns": self.kernel.last_ns,
            "beats": self._ear.beats,
        }
        return json.dumps(state).encode()

    def restore(self, settings: dict[str, Any], data: bytes) -> None:
        """Goes on, and says in the log that it was restored: two machines from one snapshot have different logs."""
        state = json.loads(data)
        self._assemble(settings, HeadKey.of(state["key"]), Ear(self.now(), beats=state["beats"]))
        self.store.load(state["store"])
        self.writer.load(state["writer"])
        self.rules.load(state["rules"])
        self.kernel.last_ns = state["last_ns"]
        # Without room for it now it is said later: the host could resume two machines when the log is full, and their
        # logs would go on alike.
        self.writer.resumed(self.nonce())
