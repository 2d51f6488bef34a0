# SPDX-License-Identifier: GPL-2.0-or-later
"""When users of the channel get the machine: in turns, each followed by time for the kernel.

Anyone who can connect to the host can give VeilMon work without end. Its work is part of a turn: what the users'
connections had for the hypervisor's thread, then VeilMon, until it has the kernel run again. Both do a bounded amount
and leave the rest for the next turn. After one the kernel runs at least `KERNEL_SHARE` times as long, unless it sleeps.
What the listener's thread needed since the last turn counts, too: the computer may have one core for both.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from veil.host.vcpu import Vcpu

__all__ = ["ACTIONS", "KERNEL_SHARE", "ChannelTurns"]

#: What is done at most for users' connections in a turn, before VeilMon is entered.
ACTIONS = 64
#: How long the kernel runs after a turn, for each nanosecond of the turn. More than one, because a turn costs the
#: kernel more than its time: what it had in the computer's caches.
KERNEL_SHARE = 1.5
#: A turn that took longer (a computer that slept) counts as this.
_MAX_SINGLE_NS = 250_000_000


class ChannelTurns:
    """The accounts. All of it is the hypervisor's thread's, but for `put`."""

    def __init__(self, announce: Callable[[], None], clock: Callable[[], int]) -> None:
        """`announce` makes the hypervisor look here; safe in any thread. `clock` counts nanoseconds."""
        self._clock = clock
        self._announce = announce
        self._announced = False
        self._actions: deque[Callable[[], None]] = deque()
        self._took = 0
        #: by the other thread, all that it told; and how much of it is paid for
        self._beside = self._paid = 0
        #: on which VCPU VeilMon is at it
        self.vcpu: Vcpu | None = None
        #: the next turn begins no earlier, if the kernel has something to do
        self.not_before = 0
        self.count = 0

    def put(self, action: Callable[[], None]) -> None:
        """Do this in the next turn. Safe in any thread; the hypervisor is interrupted once a turn at most."""
        self._actions.append(action)
        if not self._announced:
            self._announced = True
            self._announce()

    def worked(self, nanoseconds: int) -> None:
        """The listener's thread has needed so long since it said so last. For that thread alone."""
        self._beside += nanoseconds

    @property
    def waiting(self) -> bool:
        """Is there something to do in a turn?"""
        return bool(self._actions)

    def begin(self, gathering: AbstractContextManager[None]) -> None:
        """Begin a turn; `gathering` is entered while actions are done."""
        self.count += 1
        self._took = 0
        self._announced = False
        with self.charged(), gathering:
            for _ in range(min(ACTIONS, len(self._actions))):
                self._actions.popleft()()

    @contextlib.contextmanager
    def charged(self) -> Iterator[None]:
        """What is done meanwhile is part of the turn."""
        begin = self._clock()
        try:
            yield
        finally:
            self._took += self._clock() - begin

    def end(self) -> None:
        """The kernel runs again."""
        self.vcpu = None
        beside = self._beside
        took = min(self._took, _MAX_SINGLE_NS) + min(beside - self._paid, _MAX_SINGLE_NS)
        self._paid = beside
        self.not_before = self._clock() + int(took * KERNEL_SHARE)
