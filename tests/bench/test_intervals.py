# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark's statistics."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.guests import Cost
from bench.intervals import FEWEST, median_interval
from bench.report import Report, Row


@pytest.mark.parametrize(
    ("count", "rank"),
    # Published table of distribution-free intervals for the median at 95 % (Conover, Practical Nonparametric
    # Statistics: k-th smallest and largest of n).
    [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (17, 5), (20, 6), (25, 8), (30, 10), (40, 14), (50, 18)],
)
def test_ranks_are_those_of_the_table(count: int, rank: int) -> None:
    interval = median_interval([float(value) for value in range(1, count + 1)])
    assert (interval.low, interval.high) == (rank, count + 1 - rank)
    assert interval.confidence >= 0.95


def test_confidence_of_six_values() -> None:
    assert median_interval([3, 1, 2, 6, 5, 4]).confidence == 1 - 2 / 64


@pytest.mark.parametrize("count", range(FEWEST))
def test_too_few_values(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} values are too few"):
        median_interval([1.0] * count)


@given(st.lists(st.floats(0.1, 10), min_size=FEWEST, max_size=60), st.randoms())
def test_the_interval_encloses_the_median_whatever_the_order(values: list[float], order: random.Random) -> None:
    interval = median_interval(values)
    assert interval.low <= interval.median == statistics.median(values) <= interval.high
    order.shuffle(values)
    assert median_interval(values) == interval


def test_coverage_is_what_it_claims() -> None:
    source = random.Random(20)
    inside = 0
    for _ in range(2000):
        interval = median_interval([source.expovariate(1) for _ in range(20)])
        inside += interval.low <= 0.6931471805599453 <= interval.high
    # 95.9 % by the binomial distribution; three standard deviations are 1.3 %.
    assert 0.945 < inside / 2000 < 0.972


def _row(veil: list[float], bare: list[float]) -> Row:
    row = Row("gzip")
    for one, other in zip(veil, bare, strict=True):
        row.add("veil", [Cost(2 * one, one)])
        row.add("no monitor", [Cost(2 * other, other)])
    return row


def test_a_pair_counts_by_its_own_ratio() -> None:
    # The second pair met a computer of half the speed; both guests of it did.
    row = _row([1.1, 2.2, 1.1], [1.0, 2.0, 1.0])
    assert row.ratios == pytest.approx([1.1, 1.1, 1.1])
    assert row.wall_ratio == pytest.approx(1.1)
    assert row.interval is None


def test_the_least_of_a_boots_runs_counts_and_the_monitors_share_of_all() -> None:
    row = Row("gzip")
    row.add("veil", [Cost(9, 1, hosted=1), Cost(3, 7), Cost(4, 2, hosted=3)])
    assert row.costs["veil"] == [Cost(3, 1, hosted=0.75)]
    assert row.hosted_share == pytest.approx(0.25)
    assert row.ratio("veil", "qemu") is None


def test_report_shows_the_interval() -> None:
    report = Report(rows=[_row([1.0 + number / 100 for number in range(6)], [1.0] * 6), _row([1.0], [1.0])])
    lines = report.text().splitlines()
    assert any(line.split()[:6] == ["gzip", "6", "1.025", "1.000", "to", "1.050"] for line in lines)
    assert any("takes 6 pairs" in line for line in lines)
    assert report.json()["workloads"][0]["interval"]["high"] == pytest.approx(1.05)
