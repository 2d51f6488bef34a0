# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of entries for which the log has no room.

Records of the kernel's are refused or counted (`LogSettings.full`). What the service itself has to say waits, and comes
before everything else as soon as there is room: that calls were dropped, that the kernel was silent, that the machine
was resumed, the words of other services. A service that has a share (`Shares`) has room of its own for its words: the
kernel cannot fill the log first, and then do what they would tell.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from veil.formats.log import ENTRY_HEADER, EntryKind, ServiceWord, Silence
from veil.formats.log_settings import HALT
from veil.formats.status import Status
from veil.services.interface import Refused
from veil.services.log.shares import Shares
from veil.services.log.store import LogFull, LogStore

__all__ = ["Writer"]

_U64 = struct.Struct("<Q")
#: Room that all other entries leave free, so that the service can still record that calls found no room.
_RESERVE = ENTRY_HEADER.size + _U64.size

#: Words of other services that wait for room, as many urgent ones, and as many of each that has a share.
_MAX_WORDS = 64


class Writer:
    """Appends to the log, what waits first."""

    def __init__(self, store: LogStore, full: str, parts: Mapping[int, float]) -> None:
        """`parts`: of the log's memory, by the number of the service whose share it is."""
        self._store = store
        self._full = full
        self._shares = Shares(store, parts)
        self.dropped = 0
        """Calls that found no room, since the launch."""
        self._untold = 0  # of these, not in the log yet
        # Nor are these:
        self._resumed = b""  # the nonce of a resumption
        self._silence: Silence | None = None
        self._words: list[ServiceWord] = []
        self._urgent: list[ServiceWord] = []
        self._own: dict[int, list[ServiceWord]] = {service: [] for service in self._shares.services}

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
        self._store.append(kind, body, reserve=_RESERVE + self._shares.free)

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

    def word(self, word: ServiceWord, *, urgent: bool = False) -> None:
        """Another service's. When too many wait they count as dropped. Urgent ones wait by themselves, and come first:
        a kernel that fills the log, and then has much to be told of, must not have violations dropped for it. Those of
        a service with a share wait for nobody else's."""
        waiting = self._own.get(word.service, self._urgent if urgent else self._words)
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

    def acknowledged(self) -> None:
        """An owner has: there is new room."""
        self._shares.acknowledged()
        self.tell()

    def _tell(self) -> None:
        """Raises LogFull if something waits on."""
        if self._resumed:
            # Whatever is kept for others: two machines from one snapshot must not go on alike.
            self._store.append(EntryKind.RESUMED, self._resumed)
            self._resumed = b""
        all_told = self._tell_words(self._urgent) and self._tell_words(self._words)
        for waiting in self._own.values():
            all_told = self._tell_words(waiting) and all_told
        if not all_told:
            raise LogFull
        if self._untold:
            self._store.append(EntryKind.DROPPED, _U64.pack(self._untold), reserve=self._shares.free)
            self._untold = 0
        if self._silence is not None:
            self._store.append(EntryKind.SILENCE, self._silence.pack(), reserve=_RESERVE + self._shares.free)
            self._silence = None

    def _tell_words(self, waiting: list[ServiceWord]) -> bool:
        """All of them, or as far as there is room."""
        while waiting:
            service, body = waiting[0].service, waiting[0].pack()
            length = ENTRY_HEADER.size + len(body)
            # What a service puts into its share takes none of what is kept for anything else.
            reserve = self._shares.others(service) + (0 if length <= self._shares.own(service) else _RESERVE)
            try:
                self._store.append(EntryKind.WORD, body, reserve=reserve)
            except LogFull:
                return False
            self._shares.told(service, length)
            del waiting[0]
        return True

    # Snapshots

    def dump(self) -> dict[str, Any]:
        return {
            "dropped": self.dropped,
            "untold": self._untold,
            "silence": self._silence,
            "words": _dump(self._words),
            "urgent": _dump(self._urgent),
            "own": {str(service): _dump(waiting) for service, waiting in self._own.items()},
            "shares": self._shares.dump(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """From `dump`. A resumption that was not told yet is not in it: this one is told."""
        self.dropped, self._untold = state["dropped"], state["untold"]
        self._silence = Silence(*state["silence"]) if state["silence"] else None
        self._words, self._urgent = _load(state["words"]), _load(state["urgent"])
        self._own = {service: _load(state["own"][str(service)]) for service in self._own}
        self._shares.load(state["shares"])


def _dump(words: list[ServiceWord]) -> list[str]:
    return [word.pack().hex() for word in words]


def _load(words: list[str]) -> list[ServiceWord]:
    return [ServiceWord.parse(bytes.fromhex(word)) for word in words]
