# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told to the protected log of enclaves, and what they say themselves: bounded, however often it happens.

A program can say as many lines as it likes, a kernel can make its runtime complain again and again, and anybody in the
guest can make enclaves without end. By measurement, for each enclave has a number of its own: what is new is told, and
of the rest so much that it shows. Whoever came before leaves room: of an enclave that comes later its first lines are
told still, and more of one for which an owner has sent a secret. An owner who acknowledges entries makes room again.

What is told finds room in any case: all of it is no more than the service's share of the log (`LOG_SHARE`), which
nobody else's entries take. So a kernel that has filled the log makes no enclave run unheard.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from veil.formats.enclave_reports import EnclaveWord
from veil.formats.enclave_settings import LOG_SHARE
from veil.formats.log import ENTRY_HEADER, ServiceWord
from veil.services.enc.enclave import State
from veil.services.repetition import is_told

if TYPE_CHECKING:
    from veil.services.context import LogSpan, Recorder
    from veil.services.enc.enclave import Enclave

__all__ = ["EnclaveLedger"]

#: More than a runtime of ours says.
_LONGEST_LINE = 256
#: Measurements with an account. The one that was silent for longest is forgotten for another: all that it has said is
#: new again then, and costs room as everything does.
_MAX_ACCOUNTS = 256
#: Of lines that are not new so many are told, then each doubling.
_AGAIN_TOLD = 16
#: Lines that count most: that it is finished, and what its runtime complains of first.
_FIRST_LINES = 8
# Of the log's memory: how much of it lines take at most that no owner has acknowledged. Each that comes later has what
# the ones before must leave free: any line (of one measurement at most so much); first lines; those of measurements
# that have secrets (as many as there are secrets, each so much). Beside them: those that say of how many others there
# was no room.
_COUNTS = 1 / 32
_ANY, _FIRST, _ALL = 1 / 8, 3 / 16, LOG_SHARE - _COUNTS
_ANY_OF_ONE, _AWAITED_OF_ONE = 1 / 256, 1 / 4096
#: Bytes: of a small log that part would be no line at all.
_AWAITED_LEAST = 4096
#: Lines are counted together up to so much of the log.
_TOGETHER = 1 / 2048
#: What an entry of the log takes beside the words: it counts as well, for short lines are cheap to say.
_ENTRY = ENTRY_HEADER.size + len(ServiceWord(0, b"").pack())
#: Of all enclaves that are not finished: they cost nothing.
_UNFINISHED = ""


@dataclass
class _Standing:
    """Lines that no owner has acknowledged."""

    lines: deque[tuple[int, int]] = field(default_factory=deque)
    """(where in the log they end, bytes)."""
    bytes: int = 0
    """Of all of them."""

    def add(self, end: int, length: int, size: int) -> None:
        self.bytes += length
        if self.lines and self.lines[-1][1] + length <= _TOGETHER * size:
            length += self.lines.pop()[1]
        self.lines.append((end, length))

    def forget(self, gone: int) -> None:
        """Those that were acknowledged; `gone`: bytes of the log."""
        while self.lines and 0 < self.lines[0][0] <= gone:
            self.bytes -= self.lines.popleft()[1]


@dataclass
class _Account:
    """Of one measurement."""

    known: set[str] = field(default_factory=set)
    """Digests of lines that were told."""
    bytes: int = 0
    """Of the log, that these take."""
    again: int = 0
    """Lines that were not new, or too many."""


class EnclaveLedger:
    """The way into the log."""

    def __init__(self, record: Recorder, log: Callable[[], LogSpan], is_awaited: Callable[[bytes], bool]) -> None:
        """`is_awaited`: has an owner sent secrets for this measurement?"""
        self._record = record
        self._log = log
        self._is_awaited = is_awaited
        self._accounts: dict[str, _Account] = {}
        """Who spoke last is at the end."""
        self._standing, self._counts = _Standing(), _Standing()
        """All lines but those that only count others; and these."""
        self._awaited: dict[str, int] = {}
        """By measurement the bytes that were kept free for it, and are taken."""
        self._beyond = 0
        """Lines for which there was no room."""

    def say(self, enclave: Enclave, line: bytes) -> None:
        """A line of an enclave's own."""
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in line[:_LONGEST_LINE])
        self.note("says", enclave, text)

    def note(self, event: str, enclave: Enclave, words: str) -> None:
        """What became of an enclave."""
        measurement = enclave.measurement.hex()
        finished = enclave.state is State.READY
        size = self._log().size
        self._forget_acknowledged(size)
        account = self._account(measurement if finished else _UNFINISHED)
        digest = _digest(event, words)
        word = EnclaveWord(event, enclave.number, words, measurement).pack()
        awaited = measurement if finished and self._is_awaited(enclave.measurement) else None
        if digest not in account.known and self._has_room(account, awaited, _cost(word), size):
            account.known.add(digest)
            account.bytes += _cost(word)
            self._tell(word, self._standing, size)
            return
        count, all_told, kind, standing, most = self._count(account, size)
        if not is_told(count, all_told):
            return
        if count > all_told:
            words = f"{words} (the {count}th line {kind}; of these each doubling is told)"
            word = EnclaveWord(event, enclave.number, words, measurement).pack()
        if standing.bytes + _cost(word) <= most * size:
            self._tell(word, standing, size)

    def was_told(self, event: str, enclave: Enclave, words: str) -> bool:
        """Has its measurement an account in which this line is?"""
        account = self._accounts.get(enclave.measurement.hex())
        return account is not None and _digest(event, words) in account.known

    def _account(self, name: str) -> _Account:
        account = self._accounts.pop(name, None) or _Account()
        if len(self._accounts) >= _MAX_ACCOUNTS:
            del self._accounts[next(iter(self._accounts))]
        self._accounts[name] = account
        return account

    def _has_room(self, account: _Account, awaited: str | None, length: int, size: int) -> bool:
        """For a line that is new. `awaited`: the measurement, if an owner has sent it something."""
        after = self._standing.bytes + length
        if after <= _ANY * size and account.bytes < _ANY_OF_ONE * size:
            return True
        if after <= _FIRST * size and len(account.known) < _FIRST_LINES:
            return True
        if awaited is None or after > _ALL * size:
            return False
        taken = self._awaited.get(awaited, 0) + length
        if taken > max(_AWAITED_OF_ONE * size, _AWAITED_LEAST):
            return False
        self._awaited[awaited] = taken
        return True

    def _count(self, account: _Account, size: int) -> tuple[int, int, str, _Standing, float]:
        """One more that is not new, or finds no room: how many there are of this kind, how many of them are told, and
        where: of the log's memory how much."""
        if self._standing.bytes < _ANY * size:
            account.again += 1
            return account.again, _AGAIN_TOLD, "that is not new", self._standing, _FIRST
        # All together: one of each measurement would cost room, and there is no end of measurements.
        self._beyond += 1
        return self._beyond, 0, "of enclaves for which there is no room", self._counts, _COUNTS

    def _tell(self, word: bytes, standing: _Standing, size: int) -> None:
        self._record(word)
        standing.add(self._log().told, _cost(word), size)

    def _forget_acknowledged(self, size: int) -> None:
        gone = self._log().gone
        for standing in (self._standing, self._counts):
            standing.forget(gone)
        if not self._standing.lines:
            self._accounts.clear()
        if self._standing.bytes < _ANY * size:
            self._awaited.clear()
            self._beyond = 0

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accounts": [[name, sorted(of.known), of.bytes, of.again] for name, of in self._accounts.items()],
            "standing": list(self._standing.lines),
            "counts": list(self._counts.lines),
            "awaited": self._awaited,
            "beyond": self._beyond,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `dump` gave."""
        self._accounts = {name: _Account(set(known), length, again) for name, known, length, again in state["accounts"]}
        self._standing, self._counts = _standing(state["standing"]), _standing(state["counts"])
        self._awaited = state["awaited"]
        self._beyond = state["beyond"]


def _cost(word: bytes) -> int:
    return _ENTRY + len(word)


def _digest(event: str, words: str) -> str:
    return hashlib.sha256(f"{event} {words}".encode()).hexdigest()[:32]


def _standing(lines: list[tuple[int, int]]) -> _Standing:
    return _Standing(deque((end, length) for end, length in lines), sum(length for _, length in lines))
