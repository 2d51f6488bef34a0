# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of entries for which the log has no room.

Records of the kernel's are refused or counted (`LogSettings.full`). What the service itself has to say waits, and comes
before everything else as soon as there is room: that calls were dropped, that the kernel was silent, that the machine
was resumed, the words of other services.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

from veil.formats.log import ENTRY_HEADER, EntryKind, Silence
from veil.formats.log_settings import HALT
from veil.formats.status import Status
from veil.services.interface import Refused
from veil.services.log.store import LogFull, LogStore

__all__ = ["Writer"]

_U64 = struct.Struct("<Q")
#: Room that all other entries leave free, so that the service can still record that calls found no room.
_RESERVE = ENTRY_HEADER.size + _U64.size

#: Words of other services that wait for room, and as many urgent ones.
_MAX_WORDS = 64


class Writer:
    """Appends to the log, what waits first."""

    def __init__(self, store: LogStore, full: str) -> None:
        self._store = store
        self._full = full
        self.dropped = 0
        """Calls that found no room, since the launch."""
        self._untold = 0  # of these, not in the log yet
        # Nor are these:
        self._resumed = b""  # the nonce of a resumption
        self._silence: Silence | None = None
        self._words: list[bytes] = []
        self._urgent: list[bytes] = []

    def append(self, kind: EntryKind, body: bytes) -> None:
        """For the kernel. What finds no room is dropped and counted, or refused: the setting decides."""
        try:
            self._append_or_raise(kind, body)
        except LogFull:
            if self._full == HALT:
                raise Refused(Status.FULL, "the log is full") from None
            self._drop()

    def append_or_refuse(self, kind: EntryKind, body: bytes, why: str) -> None:
        """An entry without which something must not be done. Raises Refused with `why`, whatever the setting."""
        try:
            self._append_or_raise(kind, body)
        except LogFull:
            raise Refused(Status.FULL, why) from None

    def _append_or_raise(self, kind: EntryKind, body: bytes) -> None:
        self._tell()
        self._store.append(kind, body, reserve=_RESERVE)

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    # What the service itself says: at once if there is room

    def resumed(self, nonce: bytes) -> None:
        """The machine goes on from a snapshot."""
        self._resumed = nonce
        self.tell()

    def silent(self, silence: Silence) -> None:
        """The kernel was silent. Of several that wait the longest is told."""
        if self._silence is None or silence > self._silence:
            self._silence = silence
        self.tell()

    def word(self, word: bytes, *, urgent: bool = False) -> None:
        """Another service's. When too many wait they count as dropped. Urgent ones wait by themselves, and come first:
        a kernel that fills the log, and then has much to be told of, must not have violations dropped for it."""
        waiting = self._urgent if urgent else self._words
        if len(waiting) < _MAX_WORDS:
            waiting.append(word)
        else:
            self._drop()
        self.tell()

    def tell(self) -> None:
        """Append what waits, as far as there is room.

        Call it when there is new room, not with the kernel's next call: a kernel that was taken over may make none.
        """
        with suppress(LogFull):
            self._tell()

    def _tell(self) -> None:
        if self._resumed:
            self._store.append(EntryKind.RESUMED, self._resumed)
            self._resumed = b""
        for waiting in (self._urgent, self._words):
            while waiting:
                self._store.append(EntryKind.WORD, waiting[0], reserve=_RESERVE)
                del waiting[0]
        if self._untold:
            self._store.append(EntryKind.DROPPED, _U64.pack(self._untold))
            self._untold = 0
        if self._silence is not None:
            self._store.append(EntryKind.SILENCE, self._silence.pack(), reserve=_RESERVE)
            self._silence = None

    # Snapshots

    def dump(self) -> dict[str, Any]:
        return {
            "dropped": self.dropped,
            "untold": self._untold,
            "silence": self._silence,
            "words": [word.hex() for word in self._words],
            "urgent": [word.hex() for word in self._urgent],
        }

    def load(self, state: dict[str, Any]) -> None:
        """From `dump`. A resumption that was not told yet is not in it: this one is told."""
        self.dropped, self._untold = state["dropped"], state["untold"]
        self._silence = Silence(*state["silence"]) if state["silence"] else None
        self._words = [bytes.fromhex(word) for word in state["words"]]
        self._urgent = [bytes.fromhex(word) for word in state["urgent"]]
