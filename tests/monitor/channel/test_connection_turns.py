# SPDX-License-Identifier: GPL-2.0-or-later
"""Handshakes and strangers' requests have the same time, however long a step of either takes: a clock of the tests'."""

from __future__ import annotations

from veil.monitor.channel.bounds import MAX_CREDIT_NS, MAX_HANDSHAKES
from veil.monitor.channel.connection import Connection, Rank
from veil.monitor.channel.connection_turns import Budget, Schedule

MS = 1_000_000
#: What a step takes: a report by the secure processor, a ClientHello answered.
COST = {Rank.STRANGER: 3 * MS, Rank.HANDSHAKE: 7 * MS // 10, Rank.EXPECTED: 7 * MS // 10, Rank.KNOWN: MS // 10}


class Endless(Connection):
    """Always has something to do."""

    has_work = True

    def __init__(self, number: int, rank: Rank) -> None:
        self.number, self.rank = number, rank


class Flood:
    """Entries of VeilMon, one after the other."""

    def __init__(self) -> None:
        self.now = 0
        self.schedule = Schedule()
        self.took = dict.fromkeys(Rank, 0)
        self.steps = dict.fromkeys(Rank, 0)
        self.numbers = iter(range(1 << 30))

    def come(self, rank: Rank, count: int) -> None:
        for _ in range(count):
            self.schedule.put(Endless(next(self.numbers), rank))

    def run(self, milliseconds: int) -> None:
        """Whoever was served has more to do at once."""
        end = self.now + milliseconds * MS
        while self.now < end:
            budget = Budget(lambda: self.now)
            while (connection := self.schedule.next(budget)) is not None:
                rank = connection.rank
                self.now += COST[rank]
                self.took[rank] += COST[rank]
                self.steps[rank] += 1
                self.schedule.charge(rank, COST[rank])
                self.schedule.put(connection)


def test_a_flood_of_reports_leaves_handshakes_half_of_the_time() -> None:
    flood = Flood()
    flood.come(Rank.STRANGER, 256)
    flood.come(Rank.HANDSHAKE, 32)
    flood.run(1000)
    longest = max(COST.values())
    assert abs(flood.took[Rank.HANDSHAKE] - flood.took[Rank.STRANGER]) <= longest
    assert flood.steps[Rank.HANDSHAKE] > 4 * flood.steps[Rank.STRANGER]


def test_handshakes_without_end_leave_strangers_half() -> None:
    flood = Flood()
    flood.come(Rank.HANDSHAKE, 32)
    flood.come(Rank.STRANGER, 1)
    flood.run(1000)
    assert flood.took[Rank.STRANGER] >= 490 * MS


def test_time_that_was_not_wanted_is_not_made_up_for() -> None:
    """After ten seconds of handshakes alone a flood of reports does not have the next ten."""
    flood = Flood()
    flood.come(Rank.HANDSHAKE, 32)
    flood.run(10_000)
    before = flood.took[Rank.HANDSHAKE]
    flood.come(Rank.STRANGER, 256)
    flood.run(1000)
    least = (1000 * MS - MAX_CREDIT_NS) // 2 - max(COST.values())
    assert flood.took[Rank.HANDSHAKE] - before >= least
    assert flood.took[Rank.STRANGER] >= least


def test_whom_the_host_expects_waits_for_none_of_them() -> None:
    """Whatever floods there are he is next; and a flood of his kind leaves owners the first place."""
    flood = Flood()
    flood.come(Rank.HANDSHAKE, 256)
    flood.come(Rank.STRANGER, 256)
    flood.run(1000)
    flood.come(Rank.EXPECTED, 1)
    budget = Budget(lambda: flood.now)
    first = flood.schedule.next(budget)
    assert first is not None
    assert first.rank == Rank.EXPECTED
    flood.come(Rank.EXPECTED, 64)
    flood.come(Rank.KNOWN, 1)
    first = flood.schedule.next(Budget(lambda: flood.now))
    assert first is not None
    assert first.rank == Rank.KNOWN


def test_whom_the_host_expects_are_served_in_turn() -> None:
    flood = Flood()
    flood.come(Rank.EXPECTED, 3)
    numbers = []
    for _ in range(3):
        one = flood.schedule.next(Budget(lambda: flood.now))
        assert one is not None
        numbers.append(one.number)
    assert numbers == sorted(numbers)


def test_an_entry_is_bounded_for_them_as_well() -> None:
    flood = Flood()
    flood.come(Rank.EXPECTED, 64)
    budget = Budget(lambda: 0)
    assert sum(flood.schedule.next(budget) is not None for _ in range(64)) == MAX_HANDSHAKES
