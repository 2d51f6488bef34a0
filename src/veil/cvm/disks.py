# SPDX-License-Identifier: GPL-2.0-or-later
"""A CVM's disks as users name them, and what the host gets for them."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, cast

from veil.errors import VeilError
from veil.formats.errors import FormatError
from veil.formats.sizes import format_size, parse_size
from veil.host.devices import SECTOR, Backend, Blank, Overlay, RawImage

__all__ = ["READ_ONLY", "TEMPORARY", "WRITE", "Disk", "Disks"]

#: what becomes of the guest's writes: errors; the image is changed; they are kept as long as the guest runs
READ_ONLY, WRITE, TEMPORARY = "read-only", "write", "tmp"
_MODES = (READ_ONLY, WRITE, TEMPORARY)
_SCRATCH = "scratch:"


@dataclass(frozen=True)
class Disk:
    """A raw image, or as many bytes of zeros. Raises VeilError for what cannot be a disk."""

    image: str | None
    """The file's absolute path; None for an empty disk."""
    mode: str = READ_ONLY
    size: int = 0
    """Of an empty disk, in bytes; an image's is its file's."""

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise VeilError(f"a disk is {', '.join(_MODES[:-1])} or {_MODES[-1]}, not {self.mode!r:.40}")
        if self.image is None:
            if self.mode != TEMPORARY or self.size <= 0 or self.size % SECTOR:
                raise VeilError(f"an empty disk has a size in sectors of {SECTOR} bytes, and is temporary")
        elif self.size or not os.path.isabs(self.image) or "\0" in self.image:
            raise VeilError("a disk's image is named by its absolute path")

    @classmethod
    def parse(cls, text: str) -> Disk:
        """IMAGE, IMAGE,write, IMAGE,tmp or scratch:SIZE; raises VeilError."""
        if text.startswith(_SCRATCH):
            try:
                return cls(None, TEMPORARY, parse_size(text.removeprefix(_SCRATCH)))
            except FormatError as error:
                raise VeilError(f"disk {text}: {error}") from error
        image, comma, mode = text.rpartition(",")
        if not comma or mode not in _MODES:
            image, mode = text, READ_ONLY
        if not image:
            raise VeilError(f"{text!r} is not a disk: write IMAGE, IMAGE,write, IMAGE,tmp or scratch:SIZE")
        return cls(os.path.abspath(image), mode)

    def __str__(self) -> str:
        if self.image is None:
            return f"{_SCRATCH}{format_size(self.size)}"
        return self.image if self.mode == READ_ONLY else f"{self.image},{self.mode}"

    def open(self, stack: ExitStack) -> Backend:
        """What the host gets; `stack` closes it. Raises VeilError, also for an image that another guest writes to."""
        if self.image is None:
            return Overlay(Blank(self.size), _unnamed(stack))
        try:
            stream = stack.enter_context(_open(self.image, write=self.mode == WRITE))
            # Two guests may read one image; nobody else may use one that is written to: each would corrupt it for all.
            fcntl.flock(stream, (fcntl.LOCK_EX if self.mode == WRITE else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VeilError(
                f"the disk {self.image} is in use: another guest writes to it, or this one would"
            ) from error
        except OSError as error:
            raise VeilError(f"the disk {self.image} cannot be used: {error.strerror}") from error
        image = RawImage(stream, self.image, read_only=self.mode != WRITE)
        return Overlay(image, _unnamed(stack)) if self.mode == TEMPORARY else image


class Disks:
    """The opened disks of a running CVM."""

    def __init__(self, disks: Iterable[Disk]) -> None:
        """Opens all or none; raises VeilError."""
        self._stack = ExitStack()
        self.backends: list[Backend] = []
        try:
            for disk in disks:
                self.backends.append(disk.open(self._stack))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the images back."""
        self._stack.close()


def _open(path: str, *, write: bool) -> BinaryIO:
    # Not to wait for a pipe's other end; it says nothing for files.
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)

    return cast("BinaryIO", open(path, "r+b" if write else "rb", buffering=0, opener=opener))


def _unnamed(stack: ExitStack) -> BinaryIO:
    """An empty file in TMPDIR, for its owner alone, that nobody can find."""
    return stack.enter_context(cast("BinaryIO", tempfile.TemporaryFile(buffering=0)))
