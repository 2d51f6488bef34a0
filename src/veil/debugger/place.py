# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a debugger is reached: a socket in the file system, its owner's alone, or a port of this computer's alone.

Nothing else is listened on: whoever speaks to it has the guest.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

from veil.errors import VeilError, describe
from veil.private_files import UMASK

__all__ = ["Place"]

_LOOPBACK = "127.0.0.1"
#: of sun_path
_MAX_PATH = 107


class Place(NamedTuple):
    """A path, or a port (0: any that is free)."""

    path: Path | None
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Place:
        """ "PORT", ":PORT", "localhost:PORT", "127.0.0.1:PORT", or a path. Raises VeilError."""
        match = re.fullmatch(r"(?:(.*):)?([0-9]{1,5})", text)
        if match is None:
            if not text or len(os.fsencode(text)) > _MAX_PATH:
                raise VeilError(f"{text!r} is not a place for gdb: write a port, or the path of a socket")
            return cls(Path(text))
        if match[1] not in (None, "", "localhost", _LOOPBACK):
            raise VeilError(f"gdb is listened for on this computer's own address alone, not on {match[1]}")
        if int(match[2]) > 0xFFFF:
            raise VeilError(f"there is no port {match[2]}")
        return cls(None, int(match[2]))

    def listen(self) -> socket.socket:
        """Raises VeilError."""
        try:
            if self.path is None:
                return socket.create_server((_LOOPBACK, self.port))
            return self._listen_at(self.path)
        except OSError as error:
            raise VeilError(f"cannot listen for gdb on {self.path or self.port}: {describe(error)}") from error

    def _listen_at(self, path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(UMASK)
        try:
            listener.bind(os.fspath(path))
            listener.listen(1)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        return listener

    @staticmethod
    def describe(listener: socket.socket) -> str:
        """As gdb's `target remote` wants it."""
        name = listener.getsockname()
        return name if isinstance(name, str) else f"{name[0]}:{name[1]}"

    def close(self, listener: socket.socket) -> None:
        """Also takes the socket's name away."""
        listener.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
