# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of an enclave that the kernel has for a while, encrypted.

The kernel keeps the ciphertext; nonce and tag stay here. So what it gives back is what it was given last for this
address, or it is refused: not something else, not an older one, not that of another address or another enclave. What
stays here is bounded by the pages that the enclave may have: one entry for each that is away.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from veil.formats.page_sizes import PAGE_SIZE
from veil.services.enc.errors import EnclaveError

__all__ = ["AwayPages"]

_TAG, _NONCE = 16, 12


class _Given(NamedTuple):
    key: int
    number: int
    tag: bytes


class AwayPages:
    """Of one enclave."""

    def __init__(self, older: tuple[bytes, ...] = ()) -> None:
        self._keys = (*older, os.urandom(32))
        self._ciphers = tuple(map(AESGCM, self._keys))
        self._count = 0
        #: address -> what was given last
        self._given: dict[int, _Given] = {}

    def seal(self, va: int, content: bytes) -> bytes:
        """Content as the kernel gets it."""
        self._count += 1
        sealed = self._ciphers[-1].encrypt(_nonce(self._count), content, _place(va))
        self._given[va] = _Given(len(self._keys) - 1, self._count, sealed[-_TAG:])
        return sealed[:-_TAG]

    def open(self, va: int, sealed: bytes) -> bytes:
        """Content that comes back. Raises EnclaveError if it is not what was given last for this address."""
        given = self._given.get(va)
        if given is None:
            raise EnclaveError(f"nothing of {va:#x} was given away")
        try:
            return self._ciphers[given.key].decrypt(_nonce(given.number), sealed + given.tag, _place(va))
        except InvalidTag:
            raise EnclaveError(f"what comes back for {va:#x} is not what was given last") from None

    def forget(self, va: int, pages: int = 1) -> None:
        """They are there again, or the enclave has no use for them any more."""
        if pages < len(self._given):
            gone = [at for at in range(va, va + pages * PAGE_SIZE, PAGE_SIZE) if at in self._given]
        else:
            gone = [at for at in self._given if va <= at < va + pages * PAGE_SIZE]
        for at in gone:
            del self._given[at]

    def __len__(self) -> int:
        return len(self._given)

    # Snapshots, which are secret. Two machines from one must not use a nonce twice: each goes on with a key of its own.

    def dump(self) -> dict[str, Any]:
        used = sorted({given.key for given in self._given.values()})
        return {
            "keys": [self._keys[key].hex() for key in used],
            "given": [[va, used.index(key), number, tag.hex()] for va, (key, number, tag) in self._given.items()],
        }

    @classmethod
    def load(cls, state: dict[str, Any]) -> AwayPages:
        """Take back what `dump` gave."""
        made = cls(tuple(map(bytes.fromhex, state["keys"])))
        for va, key, number, tag in state["given"]:
            made._given[va] = _Given(key, number, bytes.fromhex(tag))
        return made


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE, "little")


def _place(va: int) -> bytes:
    return va.to_bytes(8, "little")
