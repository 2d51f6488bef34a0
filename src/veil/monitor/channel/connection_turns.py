# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose turn it is, and how much is done before the kernel runs again.

VeilMon works on the channel with the kernel standing still, for people of whom most have proved nothing. Each time that
the host enters it, it does a bounded amount of work and leaves the rest for the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from veil.monitor.channel.bounds import MAX_CREDIT_NS, MAX_ENTRY_NS, MAX_HANDSHAKES, MAX_STEPS, MAX_STRANGER_STEPS
from veil.monitor.channel.connection import Connection, Rank

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Budget", "Schedule"]


class Budget:
    """What is left to do in this entry."""

    def __init__(self, clock: Callable[[], int]) -> None:
        """`clock` counts nanoseconds."""
        self._clock = clock
        self._until = clock() + MAX_ENTRY_NS
        self._steps = MAX_STEPS
        self._of = {
            Rank.KNOWN: MAX_STEPS,
            Rank.EXPECTED: MAX_HANDSHAKES,
            Rank.HANDSHAKE: MAX_HANDSHAKES,
            Rank.STRANGER: MAX_STRANGER_STEPS,
        }

    @property
    def over(self) -> bool:
        """Has the kernel waited long enough? Never before the first step: each entry gets on."""
        return self._steps <= 0 or (self._steps < MAX_STEPS and self._clock() >= self._until)

    def allows(self, rank: Rank) -> bool:
        """Another step for a user of this rank?"""
        return self._of[rank] > 0

    def spend(self, rank: Rank) -> None:
        """One step."""
        self._steps -= 1
        self._of[rank] -= 1


class Schedule:
    """Connections that have something to do, by rank, in turn.

    Users whom the launch names come first, then the handshakes of those whom the host expects to be such users: however
    many others there are, they wait for one another only. Other handshakes and strangers' requests have the same
    time, not the same number of steps: a stranger's report takes as long as several steps of a handshake. Of these
    handshakes the newest and the oldest alternate: who comes now is mostly answered at once, however many were begun
    before, and nobody waits for more than twice the queue.
    """

    def __init__(self) -> None:
        self._ready: dict[Rank, dict[int, Connection]] = {rank: {} for rank in Rank}
        self._took_ns = {Rank.HANDSHAKE: 0, Rank.STRANGER: 0}
        self._newest = False

    @property
    def busy(self) -> bool:
        """Is there work?"""
        return any(self._ready.values())

    def put(self, connection: Connection) -> None:
        """It may have something to do: to the end of its rank's queue, or where it is already."""
        if connection.has_work:
            self._ready[connection.rank].setdefault(connection.number, connection)

    def drop(self, connection: Connection) -> None:
        """It has nothing to do any more."""
        for queue in self._ready.values():
            queue.pop(connection.number, None)

    def next(self, budget: Budget) -> Connection | None:
        """The connection that is served next; takes a step off the budget."""
        if budget.over:
            return None
        for rank in self._order():
            queue = self._ready[rank]
            while queue and budget.allows(rank):
                connection = self._pop(rank, queue)
                if not connection.has_work:
                    continue
                budget.spend(rank)
                return connection
        return None

    def _pop(self, rank: Rank, queue: dict[int, Connection]) -> Connection:
        if rank == Rank.HANDSHAKE:
            self._newest = not self._newest
            if self._newest:
                return queue.popitem()[1]
        return queue.pop(next(iter(queue)))

    def charge(self, rank: Rank, nanoseconds: int) -> None:
        """A step for a user of this rank took so long."""
        if rank in self._took_ns:
            self._took_ns[rank] += nanoseconds

    def _order(self) -> Iterable[Rank]:
        took = self._took_ns
        # A rank that had nothing to do for long does not make up for all of it.
        least = max(took.values()) - MAX_CREDIT_NS
        for rank in took:
            took[rank] = max(took[rank], least)
        return Rank.KNOWN, Rank.EXPECTED, *sorted(took, key=lambda rank: (took[rank], rank))
