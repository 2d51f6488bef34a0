# SPDX-License-Identifier: GPL-2.0-or-later
"""What one target does, said every two seconds: some need a while to begin, and some a while for an input."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable

__all__ = ["PULSE", "Progress"]

#: A line of the fuzzer's process that begins so says how many inputs there were; any other is a finding.
PULSE = "inputs so far: "
_EVERY_SECONDS = 2.0


class Progress:
    """Of one target, to standard error until the `with` ends. On a terminal it is one line, which changes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = time.monotonic()
        self._first: float | None = None
        self._inputs = 0
        self._done = threading.Event()
        self._speaker = threading.Thread(target=self._speak, daemon=True)
        self.findings: list[str] = []

    def __enter__(self) -> Progress:
        self._speaker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._speaker.join()
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def hear(self, lines: Iterable[str]) -> None:
        """What the fuzzer's process says, to its end."""
        for line in lines:
            if not line.startswith(PULSE):
                self.findings.append(line.rstrip("\n"))
                continue
            self._first = self._first or time.monotonic()
            self._inputs = int(line.removeprefix(PULSE))

    def words(self) -> str:
        """How it stands."""
        now = time.monotonic()
        said = f"{self._name}: {now - self._start:.0f} s"
        if self._first is None:
            return f"{said}, getting ready"
        rate = self._inputs / max(now - self._first, 1.0)
        return f"{said}, {self._inputs} inputs, {rate:.1f} a second, {len(self.findings)} findings"

    def _speak(self) -> None:
        while not self._done.wait(_EVERY_SECONDS):
            if sys.stderr.isatty():
                print(f"\r\033[K{self.words()}", end="", file=sys.stderr, flush=True)
            else:
                print(self.words(), file=sys.stderr, flush=True)
