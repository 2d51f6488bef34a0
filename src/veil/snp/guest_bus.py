# SPDX-License-Identifier: GPL-2.0-or-later
"""What the views of one machine have in common: memory, the RMP, the cipher, and whom they tell of writes to code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.errors import SnpError
from veil.snp.memory import Memory
from veil.snp.rmp import EntryFlag, Rmp

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Encryption", "GuestBus", "is_shared"]

_NOT_SHARED = int(EntryFlag.ASSIGNED | EntryFlag.NO_RAM)
_SIZE_2M = int(EntryFlag.SIZE_2M)
_BASE_2M = ~511


class Encryption(Protocol):
    """The memory controller's cipher."""

    def encrypt_page(self, gpa: int, data: bytes) -> bytes:
        """What the host sees of a private page."""

    def decrypt_page(self, gpa: int, data: bytes) -> bytes:
        """What the guest sees of a page that the host wrote before it assigned it."""


def is_shared(words: memoryview[int], page: int) -> bool:
    """Is the page the host's, by the RMP's words?"""
    return not (words[page] & _NOT_SHARED or words[page & _BASE_2M] & _SIZE_2M)


def _no_code(gpa: int, length: int) -> None:
    """Nobody holds translated code."""


class GuestBus:
    """What all views of one machine share.

    `code_map` has one byte per page, not zero where the engine holds translated code of the page; a write there is
    told to `on_code_write(gpa, length)`, so that no stale code runs.
    """

    __slots__ = ("_code", "code_map", "encryption", "memory", "on_code_write", "rmp")

    def __init__(
        self,
        memory: Memory,
        rmp: Rmp,
        encryption: Encryption,
        *,
        code_map: bytearray | NDArray[np.uint8] | None = None,
        on_code_write: Callable[[int, int], None] = _no_code,
    ) -> None:
        if rmp.pages != memory.pages:
            raise SnpError(f"the RMP covers {rmp.pages} pages, memory has {memory.pages}")
        self.memory = memory
        self.rmp = rmp
        self.encryption = encryption
        shared = bytearray(memory.pages) if code_map is None else code_map
        self.code_map: NDArray[np.uint8] = np.frombuffer(shared, dtype=np.uint8)
        if len(self.code_map) != memory.pages:
            raise SnpError(f"the code map covers {len(self.code_map)} pages, memory has {memory.pages}")
        self._code = self.code_map.data
        self.on_code_write = on_code_write

    def written(self, gpa: int, length: int) -> None:
        """Memory was written behind the engine's back."""
        # Its bytes, not numpy's any(): that takes ten times as long for a few pages.
        if self._code[gpa // PAGE_SIZE : (gpa + length - 1) // PAGE_SIZE + 1].tobytes().strip(b"\0"):
            self.on_code_write(gpa, length)
