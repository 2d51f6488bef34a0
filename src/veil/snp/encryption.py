# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory controller's cipher: what the host sees of private pages.

AES-128-XTS with the page's address as tweak (AMD's own mode is not published in full: XEX with an address tweak).
The key is fresh for each launch and never leaves the machine.
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from veil.snp.errors import SnapshotError

__all__ = ["MemoryEncryption"]

_KEY_BYTES = 32


class MemoryEncryption:
    """Encrypts 4 KiB pages in place of their address."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = os.urandom(_KEY_BYTES) if key is None else key

    def _cipher(self, gpa: int) -> Cipher[modes.XTS]:
        return Cipher(algorithms.AES(self._key), modes.XTS(gpa.to_bytes(16, "little")))

    def encrypt_page(self, gpa: int, data: bytes) -> bytes:
        """Plaintext of the page at `gpa` to what lies in DRAM; the same length."""
        return self._cipher(gpa).encryptor().update(data)

    def decrypt_page(self, gpa: int, data: bytes) -> bytes:
        """The inverse of `encrypt_page`."""
        return self._cipher(gpa).decryptor().update(data)

    def dump(self) -> bytes:
        """The key, for a snapshot."""
        return self._key

    @classmethod
    def load(cls, key: bytes) -> MemoryEncryption:
        """The cipher of a snapshot; raises SnapshotError."""
        if len(key) != _KEY_BYTES:
            raise SnapshotError(f"a memory encryption key has {_KEY_BYTES} bytes, not {len(key)}")
        return cls(key)
