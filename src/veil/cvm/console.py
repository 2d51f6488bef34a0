# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's console: what it printed last, for whoever asks, and each piece for those who watch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Console"]

_MAX = 64 * 1024


class Console:
    """The last 64 KiB. `watch` gets each piece as it comes, after the `panic` watcher."""

    def __init__(self, watch: Callable[[bytes], None] | None) -> None:
        self.watch = watch
        self.panic: Callable[[bytes], None] | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0

    @property
    def output(self) -> bytes:
        """What it holds."""
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> None:
        """The guest printed something."""
        self._pieces.append(data)
        self._held += len(data)
        while self._held > _MAX:
            self._held -= len(self._pieces.popleft())
        for take in (self.panic, self.watch):
            if take is not None:
                take(data)
