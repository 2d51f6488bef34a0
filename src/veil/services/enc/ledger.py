# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told to the protected log of enclaves, and what they say themselves: bounded, however often it happens.

A program can say as many lines as it likes, a kernel can make its runtime complain again and again, and anybody in the
guest can make enclaves without end. By measurement, for each enclave has a number of its own: what is new is told, and
of the rest so much that it shows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from veil.formats.enclave_reports import EnclaveWord
from veil.services.repetition import is_told

if TYPE_CHECKING:
    from veil.services.context import Recorder
    from veil.services.enc.enclave import Enclave

__all__ = ["EnclaveLedger"]

#: More than a runtime of ours says.
_LONGEST_LINE = 256
#: Measurements with an account of their own; all others have one together.
_MAX_MEASUREMENTS = 256
#: Lines that are new: of one measurement, more than there are system calls; and of all.
_MAX_NEW = 512
_MAX_NEW_OF_ALL = 8192
#: Of lines that are not new, or one too many: so many are told, then each doubling.
_AGAIN_TOLD = 16
#: Bytes of the log that all this takes, a quarter of it unless it was made smaller; from then on each doubling is told.
_MOST_BYTES = 4 << 20
_OTHERS = "others"


@dataclass
class _Account:
    """Of one measurement."""

    known: set[str] = field(default_factory=set)
    """Digests of lines that were told."""
    again: int = 0
    """Lines that were not new."""


class EnclaveLedger:
    """The way into the log."""

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._accounts: dict[str, _Account] = {}
        self._bytes = 0

    def say(self, enclave: Enclave, line: bytes) -> None:
        """A line of an enclave's own."""
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in line[:_LONGEST_LINE])
        self.note("says", enclave, text)

    def note(self, event: str, enclave: Enclave, words: str) -> None:
        """What became of an enclave."""
        measurement = enclave.measurement.hex()
        account = self._account(measurement)
        if not self._is_new(account, event, words):
            account.again += 1
            all_told = _AGAIN_TOLD if self._bytes < _MOST_BYTES else 0
            if not is_told(account.again, all_told):
                return
            if account.again > all_told:
                words = f"{words} (the {account.again}th line that is not new; of these each doubling is told)"
        word = EnclaveWord(event, enclave.number, words, measurement).pack()
        self._bytes += len(word)
        self._record(word)

    def _account(self, measurement: str) -> _Account:
        if measurement not in self._accounts and len(self._accounts) >= _MAX_MEASUREMENTS:
            measurement = _OTHERS
        return self._accounts.setdefault(measurement, _Account())

    def _is_new(self, account: _Account, event: str, words: str) -> bool:
        digest = hashlib.sha256(f"{event} {words}".encode()).hexdigest()[:32]
        if self._bytes >= _MOST_BYTES or digest in account.known or len(account.known) >= _MAX_NEW:
            return False
        if sum(len(each.known) for each in self._accounts.values()) >= _MAX_NEW_OF_ALL:
            return False
        account.known.add(digest)
        return True

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        accounts = {name: [sorted(account.known), account.again] for name, account in self._accounts.items()}
        return {"accounts": accounts, "bytes": self._bytes}

    @classmethod
    def load(cls, record: Recorder, state: dict[str, Any]) -> EnclaveLedger:
        """Take back what `dump` gave."""
        made = cls(record)
        made._accounts = {name: _Account(set(known), again) for name, (known, again) in state["accounts"].items()}
        made._bytes = state["bytes"]
        return made
