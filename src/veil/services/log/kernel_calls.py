# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's driver calls: records, intents, heartbeats, and the audit rules that it loaded."""

from __future__ import annotations

from collections.abc import Callable

from veil.formats.log import EntryKind, KernelCall
from veil.formats.status import Status
from veil.services.interface import KernelRequest, Refused
from veil.services.log.audit_rules import AuditRules
from veil.services.log.silence import Ear
from veil.services.log.when_full import Writer

__all__ = ["KernelCalls"]

#: what a call appends
_KINDS: dict[int, EntryKind] = {
    KernelCall.RECORDS: EntryKind.RECORDS,
    KernelCall.INTENT: EntryKind.INTENT,
    KernelCall.HEARTBEAT: EntryKind.HEARTBEAT,
}


class KernelCalls:
    """Answers them. Records are not inspected here; their reader judges them."""

    def __init__(self, writer: Writer, rules: AuditRules, ear: Ear, now: Callable[[], int]) -> None:
        self._writer = writer
        self._rules = rules
        self._ear = ear
        self._now = now
        self.last_ns = 0
        """When the kernel last had something to append."""

    def answer(self, request: KernelRequest) -> bytes:
        """Append, or exchange rules. Raises Refused."""
        kind = _KINDS.get(request.call)
        if kind is None:
            if request.call == KernelCall.RULES:
                return self._rules.exchange(request.body)
            raise Refused(Status.UNKNOWN_CALL, f"the log has no call {request.call} for the kernel")
        silence = self._ear.heard(self._now(), beat=kind == EntryKind.HEARTBEAT)
        if silence is not None:
            self._writer.silent(silence)
        try:
            self._writer.append(kind, request.body)
        finally:
            self.last_ns = self._now()  # refused or not
        return self._rules.wanted() if kind == EntryKind.HEARTBEAT else b""
