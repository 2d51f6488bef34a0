# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel panics, recognised on the guest's console: the only place where an untrusted host can see one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.printable import printable
from veil.host.errors import GuestHung, GuestPanic, GuestReset, HostError, TripleFault

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PanicWatcher"]

_START = b"Kernel panic - not syncing: "
_END = b"---[ end Kernel panic"
#: Longer lines are cut: the console is the guest's to fill.
_MAX_LINE = 512


class PanicWatcher:
    """Feed it the console's bytes; it calls `stop` once, when the kernel has printed all of its report."""

    def __init__(self, stop: Callable[[GuestPanic], None]) -> None:
        self._stop = stop
        self._line = bytearray()
        self._done = False
        #: why the kernel panicked, as soon as it said so
        self.reason: str | None = None

    def feed(self, data: bytes) -> None:
        """Console output."""
        *complete, rest = data.split(b"\n")
        for part in complete:
            self._extend(part)
            self._look(bytes(self._line))
            self._line.clear()
        self._extend(rest)

    def explain(self, error: HostError) -> HostError:
        """The panic behind the end of a guest that resets, faults or halts after one; else the error itself."""
        if self.reason is None or not isinstance(error, GuestReset | TripleFault | GuestHung):
            return error
        return self._panic()

    def _extend(self, part: bytes) -> None:
        self._line += part[: _MAX_LINE - len(self._line)]

    def _look(self, line: bytes) -> None:
        if _END in line:
            self._report()
        elif _START in line and self.reason is None:
            self.reason = printable(line.split(_START, 1)[1].strip())

    def _report(self) -> None:
        if self._done:
            return
        self._done = True
        self._stop(self._panic())

    def _panic(self) -> GuestPanic:
        reason = self.reason or "no reason on the console"
        return GuestPanic(f"the guest's kernel panicked: {reason}; its report is on the console")
