# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory for devices that the kernel drives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.snp.errors import RmpViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.virtio.virtqueue import DmaMemory

__all__ = ["ConfinedMemory"]


class ConfinedMemory:
    """The host's view, as far as `allows(gpa, length)` lets whoever writes the descriptors name it.

    Pages that VeilMon shares with the host are the host's to write: a descriptor of the kernel that points there
    would have a device write over them.
    """

    def __init__(self, memory: DmaMemory) -> None:
        self._memory = memory
        self.allows: Callable[[int, int], bool] = lambda gpa, length: True

    def read(self, gpa: int, length: int, /) -> bytes:
        """Raises RmpViolation, like the view."""
        self._check(gpa, length, "read")
        return self._memory.read(gpa, length)

    def write(self, gpa: int, data: bytes, /) -> None:
        """Raises RmpViolation, like the view."""
        self._check(gpa, len(data), "write")
        self._memory.write(gpa, data)

    def _check(self, gpa: int, length: int, access: str) -> None:
        if not self.allows(gpa, length):
            raise RmpViolation(gpa, None, access, "it is a more privileged level's memory, not the driver's")
