# SPDX-License-Identifier: GPL-2.0-or-later
"""What a session with gdb sees of the machine that it looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from veil.debugger.contexts import Context
from veil.errors import VeilError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from veil.snp import Machine, Watchpoint

__all__ = ["SIGINT", "SIGSEGV", "SIGTRAP", "Killed", "Left", "Stop", "Target"]

#: signals' numbers, as gdb has them
SIGINT, SIGTRAP, SIGSEGV = 2, 5, 11


class Killed(VeilError):
    """gdb's user had enough of the machine."""


class Stop(NamedTuple):
    """Where and why the machine stands still."""

    signal: int
    context: Context | None
    reason: str = ""
    """as a stop reply has it: `swbreak:;`, `watch:ADDRESS;`"""


class Left(NamedTuple):
    """A context was left for its host."""

    context: Context
    exit_code: int


class Target(Protocol):
    """The machine, and what gdb has done to it."""

    @property
    def real(self) -> Machine: ...

    #: addresses, each with what a stop reply calls it
    breakpoints: dict[int, str]
    watchpoints: dict[Watchpoint, str]
    #: what was left last, the newest at the end
    left: deque[Left]
    #: None: it runs
    stopped: Stop | None

    def contexts(self) -> Sequence[Context]:
        """Those that there are now."""

    def resume(self, step: Context | None = None) -> None:
        """Go on; `step`: this context stops behind its next instruction."""

    def detach(self) -> None:
        """The machine runs on as if gdb had never been there."""
