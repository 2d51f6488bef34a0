# SPDX-License-Identifier: GPL-2.0-or-later
"""A toy memory cipher: quick, address-dependent, and not its own inverse."""

from __future__ import annotations

from veil.formats.page_sizes import PAGE_SIZE


class AddingCipher:
    """Adds a number made of the page's address to every byte."""

    def encrypt_page(self, gpa: int, data: bytes) -> bytes:
        return self._add(data, self._key(gpa))

    def decrypt_page(self, gpa: int, data: bytes) -> bytes:
        return self._add(data, -self._key(gpa))

    @staticmethod
    def _key(gpa: int) -> int:
        return gpa // PAGE_SIZE % 251 + 1

    @staticmethod
    def _add(data: bytes, key: int) -> bytes:
        return data.translate(bytes((byte + key) % 256 for byte in range(256)))
