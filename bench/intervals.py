# SPDX-License-Identifier: GPL-2.0-or-later
"""The median of a few values, and how far it can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FEWEST", "Interval", "median_interval"]

#: Values that an interval of 95 % takes at least (2 * 0.5**6 = 3 %: all six on one side of it).
FEWEST = 6


@dataclass(frozen=True)
class Interval:
    """A median, and an interval that contains the true one with a confidence (0 to 1) of at least what was asked."""

    median: float
    low: float
    high: float
    confidence: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and the narrowest symmetrical pair of order statistics around it; no distribution is assumed.

    The k-th smallest and the k-th largest of n values enclose the median with probability 1 - 2 P(X < k), X binomial
    with n and 1/2 (David and Nagaraja, Order Statistics, 7.1).  ValueError: too few values for that confidence.
    """
    ordered = sorted(values)
    count = len(ordered)
    below = 0.0
    best: tuple[int, float] | None = None
    for rank in range(1, count // 2 + 1):
        below += math.comb(count, rank - 1) / 2**count
        reached = 1 - 2 * below
        if reached < confidence:
            break
        best = rank, reached
    if best is None:
        raise ValueError(f"{count} values are too few for an interval of {confidence:.0%}")
    rank, reached = best
    return Interval(statistics.median(ordered), ordered[rank - 1], ordered[count - rank], reached)
