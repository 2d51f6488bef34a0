# SPDX-License-Identifier: GPL-2.0-or-later
"""A raw image: the file's bytes are the disk's."""

from __future__ import annotations

import os
import stat
from typing import Any, BinaryIO

from veil.host.devices._state import checked_int
from veil.host.devices.storage.backend import StorageError
from veil.host.errors import HostError

__all__ = ["SECTOR", "RawImage"]

#: bytes (virtio 1.2, 5.2.4: capacity and addresses are in sectors of 512 bytes, whatever the block size)
SECTOR = 512
#: A guest would find no partitions in it, and what it wrote would be the end of the image. On a block device it may be
#: what the disk is for.
_QCOW2 = b"QFI\xfb"


class RawImage:
    """An open file, without Python's buffer. It may change under us at any time: whoever can write it is no guest."""

    def __init__(self, stream: BinaryIO, name: str, *, read_only: bool = True) -> None:
        """The file or block device is closed with this object. Raises HostError if it cannot be a disk."""
        self._stream = stream
        self._descriptor = stream.fileno()
        self.name = name
        self.read_only = read_only
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            raise HostError(f"the disk {name} is neither a file nor a block device")
        length = os.lseek(self._descriptor, 0, os.SEEK_END)
        self.size = length // SECTOR * SECTOR
        if not self.size:
            has = f"has only {length} bytes" if length else "is empty"
            raise HostError(f"the disk {name} {has}: a raw image has at least {SECTOR}")
        if stat.S_ISREG(status.st_mode) and self._begins_with(_QCOW2):
            raise HostError(
                f"the disk {name} is a qcow2 image, whose bytes are not the disk's: `qemu-img convert -O raw` makes a "
                "raw one"
            )

    def _begins_with(self, mark: bytes) -> bool:
        try:
            return os.pread(self._descriptor, len(mark), 0) == mark
        except OSError as error:
            raise HostError(f"the disk {self.name} cannot be read: {error.strerror}") from error

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise StorageError(f"{self.name}: {error.strerror}") from error
        if len(data) != length:
            raise StorageError(f"{self.name} has become shorter")
        return data

    def write(self, offset: int, data: bytes) -> None:
        try:
            written = os.pwrite(self._descriptor, data, offset)
        except OSError as error:
            raise StorageError(f"{self.name}: {error.strerror}") from error
        if written != len(data):
            raise StorageError(f"{self.name} did not take all that was written")

    def flush(self) -> None:
        if self.read_only:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise StorageError(f"{self.name}: {error.strerror}") from error

    def dump(self) -> dict[str, Any]:
        """Size and time of the last change: a content's checksum would cost seconds each time."""
        return {"size": self.size, "changed_ns": os.fstat(self._descriptor).st_mtime_ns}

    def load(self, state: dict[str, Any]) -> None:
        size, changed = checked_int(state["size"]), checked_int(state["changed_ns"])
        if size != self.size:
            raise HostError(f"the disk {self.name} has {self.size} bytes; in the snapshot it had {size}")
        if changed != os.fstat(self._descriptor).st_mtime_ns:
            raise HostError(
                f"the disk {self.name} was changed since the snapshot: what the guest remembers of it is no longer true"
            )
