# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures and how they are shown."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Latency", "Rate", "Report", "Row", "machine_name"]


@dataclass
class Row:
    """One workload: seconds by guest ("veil", "no monitor", "qemu")."""

    name: str
    seconds: dict[str, float]

    def ratio(self, one: str, other: str) -> float | None:
        """How many times longer `one` takes than `other`."""
        if one in self.seconds and other in self.seconds:
            return self.seconds[one] / self.seconds[other]
        return None


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
class Report:
    """Everything of one run."""

    rows: list[Row] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "machine": machine_name(),
            "workloads": [
                {
                    "name": row.name,
                    "seconds": row.seconds,
                    "veil_to_qemu": row.ratio("veil", "qemu"),
                    "no_monitor_to_qemu": row.ratio("no monitor", "qemu"),
                    "veil_to_no_monitor": row.ratio("veil", "no monitor"),
                }
                for row in self.rows
            ],
            "latencies": [asdict(item) for item in self.latencies],
            "rates": [asdict(item) for item in self.rates],
            "notes": self.notes,
        }

    def text(self) -> str:
        """A plain table."""
        lines = [machine_name(), ""]
        heading = ("", "Veil", "no monitor", "QEMU", "Veil/QEMU", "no mon./QEMU", "Veil/no mon.")
        cells = [
            (
                row.name,
                *(_seconds(row.seconds.get(name)) for name in ("veil", "no monitor", "qemu")),
                _times(row.ratio("veil", "qemu")),
                _times(row.ratio("no monitor", "qemu")),
                _times(row.ratio("veil", "no monitor")),
            )
            for row in self.rows
        ]
        if cells:
            lines += [*_columns([heading, *cells]), ""]
        lines += _columns([(item.name, _microseconds(item.microseconds)) for item in self.latencies])
        if self.rates:
            lines += ["", *_columns([(item.name, f"{item.value:,.0f} {item.unit}") for item in self.rates])]
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines)


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
    """The computer, for who reads the figures."""
    try:
        model = next(
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, Python {platform.python_version()}"
