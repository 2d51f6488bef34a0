# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine did and when, as a file that Perfetto's viewer opens (`veil run --trace FILE`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cvm.trace.asked import Asked
from veil.cvm.trace.file import TraceFile
from veil.cvm.trace.tracks import Tracks

if TYPE_CHECKING:
    from veil.host import Hypervisor
    from veil.snp import Machine

__all__ = ["Trace"]

#: more than the VCPUs of one machine have
_MANY_TRACKS = 1000


class Trace:
    """A tool (`veil.cvm.tools`): the file is written as things happen, and can be read wherever it ends.

    While it is there each exit comes to the host's Python, plain switches into enclaves and back as well: a guest that
    makes many is slower. If the file cannot be written any more (a full disk), `say` gets one line and the machine
    runs on without.
    """

    stops = False

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """Raises VeilError if there can be no such file."""
        self._file = TraceFile(path, say)
        self._machines = 0

    def attach(self, machine: Machine, hypervisor: Hypervisor) -> None:
        """From now on. Another machine has tracks of its own."""
        first = 1 + self._machines * _MANY_TRACKS
        self._machines += 1
        hypervisor.on_event = Tracks(self._file, Asked(machine, hypervisor), first).see

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
