# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk's device asks of what is behind it."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Backend", "StorageError"]


class StorageError(Exception):
    """What is behind the disk cannot do it: the guest gets an I/O error, and the user a line that says why."""


class Backend(Protocol):
    """Bytes by offset. Who calls has checked that all of a range is below `size`. For one thread."""

    @property
    def name(self) -> str:
        """For people: the image's path."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def read_only(self) -> bool:
        """Is every write an error?"""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raises StorageError."""

    def write(self, offset: int, data: bytes) -> None:
        """All of it, or StorageError."""

    def flush(self) -> None:
        """What was written survives this computer's end; raises StorageError."""

    def dump(self) -> dict[str, Any]:
        """For a snapshot: what tells the disk as it is now from any other, and what only this process has of it.

        Raises HostError if that is too much.
        """

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot. Raises HostError if the disk is not as it was, ValueError if the state is nonsense."""
