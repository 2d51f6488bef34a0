# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures and how they are shown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.code_integrity import SWITCH_CYCLES, CodeCost
from bench.guests import Cost
from bench.intervals import FEWEST, Interval, median_interval

__all__ = ["Latency", "Rate", "Report", "Row", "Strangers", "machine_name"]


@dataclass
class Row:
    """One workload: what each boot of each guest ("veil", "no monitor", "qemu") took, in the order of the pairs."""

    name: str
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    def add(self, guest: str, costs: Sequence[Cost]) -> None:
        """One boot's runs of the workload; the least counts, for whatever disturbs only adds. What VeilMon and services
        do now and then might miss that run: of their time it is the share of all runs that counts."""
        wall = min(cost.wall for cost in costs)
        processor = min(cost.processor for cost in costs)
        share = sum(cost.hosted for cost in costs) / sum(cost.wall for cost in costs)
        self.costs.setdefault(guest, []).append(Cost(wall, processor, share * wall))

    @property
    def seconds(self) -> dict[str, float]:
        """By guest: the median of processor time."""
        return {guest: statistics.median(cost.processor for cost in costs) for guest, costs in self.costs.items()}

    @property
    def ratios(self) -> list[float]:
        """Of each pair: processor time with VeilMon and services to that without."""
        pairs = zip(self.costs.get("veil", ()), self.costs.get("no monitor", ()), strict=True)
        return [one.processor / other.processor for one, other in pairs]

    @property
    def wall_ratio(self) -> float | None:
        """The same of time by the clock, the median of the pairs."""
        pairs = zip(self.costs.get("veil", ()), self.costs.get("no monitor", ()), strict=True)
        ratios = [one.wall / other.wall for one, other in pairs]
        return statistics.median(ratios) if ratios else None

    @property
    def hosted_share(self) -> float | None:
        """How much of the time VeilMon and services ran, the median of the boots."""
        shares = [cost.hosted / cost.wall for cost in self.costs.get("veil", ())]
        return statistics.median(shares) if shares else None

    @property
    def interval(self) -> Interval | None:
        """The median of the pairs' ratios; None: too few pairs for an interval of 95 %."""
        return median_interval(self.ratios) if len(self.ratios) >= FEWEST else None

    def ratio(self, one: str, other: str) -> float | None:
        """How many times longer `one` takes than `other`."""
        seconds = self.seconds
        return seconds[one] / seconds[other] if one in seconds and other in seconds else None

    def spread(self, guest: str) -> float | None:
        """How much the boots of one guest differ: the distance of the quartiles, as a part of the median."""
        values = [cost.processor for cost in self.costs.get(guest, ())]
        if len(values) < FEWEST:
            return None
        low, middle, high = statistics.quantiles(values)
        return (high - low) / middle


@dataclass
class Latency:
    """One transition or operation."""

    name: str
    microseconds: float


@dataclass
class Rate:
    """How often, or how much, in a second."""

    name: str
    value: float
    unit: str


@dataclass
class Strangers:
    """Hostile connections of one kind. Speeds are those of a program in the guest; without them it has 1."""

    connections: int

    kind: str
    speed: float
    """by the clock"""
    processor_speed: float
    """by the processor time of the thread that runs guest and VeilMon: other programs on the computer do not count"""
    owner_median: float
    """seconds until an owner has his first answer"""
    owner_worst: float
    owners: int
    """how often he came"""
    failures: list[str]


@dataclass
class Report:
    """Everything of one run."""

    rows: list[Row] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    strangers: list[Strangers] = field(default_factory=list)
    code: list[CodeCost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "machine": machine_name(),
            "workloads": [
                {
                    "name": row.name,
                    "processor_seconds": row.seconds,
                    "pairs": row.ratios,
                    "interval": asdict(row.interval) if row.interval else None,
                    "wall_ratio": row.wall_ratio,
                    "hosted_share": row.hosted_share,
                    "veil_to_qemu": row.ratio("veil", "qemu"),
                    "no_monitor_to_qemu": row.ratio("no monitor", "qemu"),
                }
                for row in self.rows
            ],
            "latencies": [asdict(item) for item in self.latencies],
            "rates": [asdict(item) for item in self.rates],
            "strangers": [asdict(item) for item in self.strangers],
            "code_integrity": [
                {**asdict(item), "pairs": item.ratios, "interval": asdict(item.interval) if item.interval else None}
                for item in self.code
            ],
            "notes": self.notes,
        }

    def text(self) -> str:
        """A plain table."""
        lines = [machine_name(), ""]
        heading = ("processor time", "Veil", "no monitor", "QEMU", "Veil/QEMU", "no mon./QEMU")
        cells = [
            (
                row.name,
                *(_seconds(row.seconds.get(name)) for name in ("veil", "no monitor", "qemu")),
                _times(row.ratio("veil", "qemu")),
                _times(row.ratio("no monitor", "qemu")),
            )
            for row in self.rows
        ]
        if cells:
            lines += [*_columns([heading, *cells]), "", *_columns([_PAIRS_HEADING, *map(_pairs, self.rows)]), ""]
        lines += _columns([(item.name, _microseconds(item.microseconds)) for item in self.latencies])
        if self.rates:
            lines += ["", *_columns([(item.name, f"{item.value:,.0f} {item.unit}") for item in self.rates])]
        if self.strangers:
            titles = ("connections", "guest's speed", "by CPU time", "an owner is in after", "at most", "times")
            table = [
                (
                    f"{item.connections} {item.kind}" if item.connections else item.kind,
                    *(f"{speed:.2f}" for speed in (item.speed, item.processor_speed)),
                    *(f"{seconds:.3f} s" for seconds in (item.owner_median, item.owner_worst)),
                    f"{item.owners}" + (f", failed {len(item.failures)}: {item.failures[0]}" if item.failures else ""),
                )
                for item in self.strangers
            ]
            lines += _columns([titles, *table])
        if self.code:
            lines += ["", *_columns([_CODE_HEADING, *map(_code, self.code)])]
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines)


_PAIRS_HEADING = (
    "Veil/no monitor",
    "pairs",
    "median",
    "95 % interval",
    "by the clock",
    "VeilMon and services run",
    "boots differ by",
)


def _pairs(row: Row) -> tuple[str, ...]:
    interval = row.interval
    median = statistics.median(row.ratios) if row.ratios else None
    spreads = [f"{spread:.1%}" for guest in ("veil", "no monitor") if (spread := row.spread(guest)) is not None]
    return (
        row.name,
        str(len(row.ratios)),
        _ratio(median),
        f"{interval.low:.3f} to {interval.high:.3f}" if interval else f"takes {FEWEST} pairs",
        _ratio(row.wall_ratio),
        "-" if row.hosted_share is None else f"{row.hosted_share:.2%}",
        ", ".join(spreads) or "-",
    )


_CODE_HEADING = ("code integrity, processor time, least", "off", "on", "more", "median of pairs", "95 % interval",
                 "VeilMon and services", "domain switches off", "on", f"more, at {SWITCH_CYCLES:,} cycles")  # fmt: skip


def _code(cost: CodeCost) -> tuple[str, ...]:
    switches = [cost.switches.get(mode, 0) for mode in ("off", "on")]
    interval = cost.interval
    return (
        cost.name,
        *(_microseconds(cost.least(mode) * 1e6) for mode in ("off", "on")),
        f"{cost.more:+.1%}",
        f"{statistics.median(cost.ratios) - 1:+.1%}",
        f"{interval.low - 1:+.1%} to {interval.high - 1:+.1%}" if interval else f"takes {FEWEST} pairs",
        _microseconds(statistics.median(cost.hosted) * 1e6),
        *(f"{count:,}" for count in switches),
        f"{(switches[1] - switches[0]) * SWITCH_CYCLES:,} cycles",
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _microseconds(value: float) -> str:
    return f"{value:,.2f} us" if value < 1000 else f"{value:,.0f} us"


def machine_name() -> str:
    """The computer that the figures are of."""
    try:
        model = next(
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, Python {platform.python_version()}"
