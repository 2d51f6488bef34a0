# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of an enclave that the kernel has for a while, encrypted.

The kernel keeps the ciphertext; nonce and tag stay here. So what it gives back is what it was given last for this
address, or it is refused: not something else, not an older one, not that of another address or another enclave.
"""

from __future__ import annotations

import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from veil.services.enc.errors import EnclaveError

__all__ = ["AwayPages"]

_TAG, _NONCE = 16, 12


class AwayPages:
    """Of one enclave."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._count = 0
        #: address -> key, nonce and tag of what was given last
        self._given: dict[int, tuple[bytes, bytes, bytes]] = {}

    def seal(self, va: int, content: bytes) -> bytes:
        """Content as the kernel gets it."""
        self._count += 1
        nonce = self._count.to_bytes(_NONCE, "little")
        sealed = AESGCM(self._key).encrypt(nonce, content, va.to_bytes(8, "little"))
        self._given[va] = self._key, nonce, sealed[-_TAG:]
        return sealed[:-_TAG]

    def open(self, va: int, sealed: bytes) -> bytes:
        """Content that comes back. Raises EnclaveError if it is not what was given last for this address."""
        if va not in self._given:
            raise EnclaveError(f"nothing of {va:#x} was given away")
        key, nonce, tag = self._given[va]
        try:
            return AESGCM(key).decrypt(nonce, sealed + tag, va.to_bytes(8, "little"))
        except InvalidTag:
            raise EnclaveError(f"what comes back for {va:#x} is not what was given last") from None

    def forget(self, va: int) -> None:
        """It is there again, or the enclave has no use for it any more."""
        self._given.pop(va, None)

    # Snapshots, which are secret. Two machines from one must not use a nonce twice: each goes on with a key of its own.

    def dump(self) -> list[list[Any]]:
        return [[va, *(part.hex() for part in parts)] for va, parts in self._given.items()]

    @classmethod
    def load(cls, state: list[list[Any]]) -> AwayPages:
        """Take back what `dump` gave."""
        made = cls()
        for va, key, nonce, tag in state:
            made._given[va] = bytes.fromhex(key), bytes.fromhex(nonce), bytes.fromhex(tag)
        return made
