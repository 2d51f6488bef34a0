# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit rules that an owner of the CVM wants its kernel to have.

The kernel is asked, not made: whether it did so, and still has them, is its own word. That they were asked for stands
in the log.
"""

from __future__ import annotations

import struct
from typing import Any

from veil.formats.log import MAX_RULES, MAX_RULES_MESSAGE, RULES_ANSWER, RULES_CALL, RulesState
from veil.formats.status import Status
from veil.services.interface import Refused

__all__ = ["AuditRules"]


class AuditRules:
    """One set at a time; generations count up."""

    def __init__(self) -> None:
        self._state = RulesState(0, 0, 0, b"", b"")

    @staticmethod
    def check(text: bytes) -> None:
        """Raises Refused for what cannot be rules."""
        if not text or len(text) > MAX_RULES:
            raise Refused(Status.BAD_REQUEST, f"audit rules have 1 to {MAX_RULES} bytes, not {len(text)}")
        if any((byte < 0x20 and byte not in b"\t\n") or byte > 0x7E for byte in text):
            raise Refused(Status.BAD_REQUEST, "audit rules are printable ASCII, a line each")

    def want(self, text: bytes) -> bytes:
        """Record the rules that an owner wants (already checked); returns their generation (u32)."""
        old = self._state
        self._state = RulesState(old.wanted + 1, old.loaded, old.status, old.words, text)
        return self.wanted()

    def wanted(self) -> bytes:
        """The generation that is wanted, for the kernel."""
        return RULES_ANSWER.pack(self._state.wanted)

    def exchange(self, body: bytes) -> bytes:
        """The kernel says what it has loaded, and gets what is wanted."""
        try:
            loaded, status = RULES_CALL.unpack_from(body)
        except struct.error:
            raise Refused(Status.BAD_REQUEST, "the log's call RULES has other arguments") from None
        state, words = self._state, body[RULES_CALL.size :]
        if len(words) > MAX_RULES_MESSAGE:
            raise Refused(
                Status.BAD_REQUEST, f"auditctl's message has at most {MAX_RULES_MESSAGE} bytes, not {len(words)}"
            )
        if loaded > state.wanted:
            raise Refused(Status.BAD_REQUEST, f"there are {state.wanted} generations of rules, not {loaded}")
        self._state = RulesState(state.wanted, loaded, status, words, state.text)
        return self.wanted() + state.text

    def state(self) -> bytes:
        """For users."""
        return self._state.pack()

    def dump(self) -> dict[str, Any]:
        return {"state": self._state.pack().hex()}

    def load(self, state: dict[str, Any]) -> None:
        """From `dump`."""
        self._state = RulesState.parse(bytes.fromhex(state["state"]))
