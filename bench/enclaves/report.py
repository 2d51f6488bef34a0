# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures as tables, JSON and a picture; beside them what the paper's computer would take for the switches."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.code_integrity import SWITCH_CYCLES
from bench.enclaves.calls import IN_PAPER, CallCost
from bench.enclaves.making import Making, Ring
from bench.enclaves.paging import Paging
from bench.enclaves.programs import Outcome
from bench.report import Latency, machine_name
from veil.guest.enclaves.calls import system_calls

__all__ = ["EnclaveReport"]

#: What the paper has for shielded programs and system calls, against native ones.
_PAPER_PROGRAMS, _PAPER_CALLS = (4.9, 63.9), (3.3, 7.1)
_KINDS = {
    "content": "content, taken, measured and mapped",
    "memory": "memory that nobody touches",
    "touched": "memory, each page touched once",
}
#: The paper's processor, an EPYC 7313P without boost.
_GHZ = 3.0
_SWITCH_US = SWITCH_CYCLES / _GHZ / 1000


@dataclass
class EnclaveReport:
    """Everything of one run."""

    programs: Sequence[Outcome] = ()
    calls: Sequence[CallCost] = ()
    instructions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    making: Sequence[Making] = ()
    paging: Sequence[Paging] = ()
    ring: Ring | None = None
    switches: Sequence[Latency] = ()

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "machine": machine_name(),
            "programs": [
                {
                    **{key: value for key, value in asdict(item).items() if key != "program"},
                    "name": item.program.name,
                    "what": item.program.what,
                    "overhead": item.overhead,
                }
                for item in self.programs
            ],
            "calls": [asdict(item) | {"ratio": item.ratio} for item in self.calls],
            "instructions": dict(self.instructions),
            "making": [asdict(item) | {"per_mib": item.per_mib} for item in self.making],
            "paging": [asdict(item) for item in self.paging],
            "ring": asdict(self.ring) if self.ring else None,
            "switches": [asdict(item) for item in self.switches],
        }

    def text(self) -> str:
        """Markdown."""
        tables = (
            self._programs(),
            self._rates(),
            self._requests(),
            self._calls(),
            self._making(),
            self._paging(),
            self._switches(),
        )
        return "\n".join(line for table in tables if table for line in (*table, "")).rstrip()

    def _programs(self) -> list[str]:
        if not self.programs:
            return []
        lines = [
            "| | native | shielded | more | being made | exits/s | to VeilS-ENC | bytes copied/s "
            "| switches on the paper's EPYC | without a guest, there |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for item in self.programs:
            seconds = statistics.median(item.shielded)
            paper = item.switches * _SWITCH_US / 1e6
            there = "-"
            if item.computer is not None:
                there = f"{item.computer * 1000:,.1f} ms: +{paper / item.computer:.1%}"
            low, _, high = _quartiles(item.ratios)
            lines.append(
                f"| {item.program.name} | {statistics.median(item.native):.3f} s | {seconds:.3f} s "
                f"| {item.overhead:+.1%} ({low - 1:+.1%} to {high - 1:+.1%}) | {statistics.median(item.making):.2f} s "
                f"| {sum(item.exits.values()) / seconds:,.0f} | {item.requests:,} "
                f"| {item.bytes / seconds / 1e6:,.2f} MB | {item.switches:,} in {paper * 1000:,.1f} ms | {there} |"
            )
        return lines

    def _rates(self) -> list[str]:
        lines = ["| of a processor's second, both ends | native | shielded |", "|---|---|---|"]
        for item in self.programs:
            if item.program.rate is not None:
                much, unit = item.program.rate
                native, shielded = (much / statistics.median(each) for each in (item.native, item.shielded))
                lines.append(f"| {item.program.name} | {native:,.1f} {unit} | {shielded:,.1f} {unit} |")
        return lines if len(lines) > 2 else []

    def _requests(self) -> list[str]:
        if not self.programs:
            return []
        lines = ["| | why it leaves the enclave |", "|---|---|"]
        names = {call.number: call.name for call in system_calls()} | {-1: "VeilS-ENC"}
        for item in self.programs:
            most = (f"{names.get(number, number)} {count:,}" for number, count in item.exits.most_common(6))
            lines.append(f"| {item.program.name} | {', '.join(most)} |")
        return lines

    def _calls(self) -> list[str]:
        if not self.calls:
            return []
        lines = [
            "| | native | shielded | times | switches | bytes copied | switches on the paper's EPYC | instructions |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for item in self.calls:
            counted = self.instructions.get(item.what)
            lines.append(
                f"| {item.what} | {item.native:.2f} us | {item.shielded:.2f} us | {item.ratio:.2f} "
                f"| {item.switches:.2f} | {item.bytes:,.0f} | {item.switches * _SWITCH_US:.1f} us "
                f"| {f'{counted[0]:,.0f} and {counted[1]:,.0f}' if counted else ''} |"
            )
        return lines

    def _making(self) -> list[str]:
        lines = ["| | |", "|---|---|"]
        for item in self.making:
            making, unmaking = item.per_mib
            lines.append(f"| a MiB of {_KINDS[item.name]} | {making:.2f} ms, {unmaking:.2f} ms when the enclave ends |")
        if self.ring is not None:
            lines.append(
                f"| from one of {self.ring.members} enclaves to the next, on one VCPU | {self.ring.shielded:.1f} us "
                f"({self.ring.native:.1f} us natively), {self.ring.switches:.1f} switches: "
                f"{self.ring.switches * _SWITCH_US:.1f} us on the paper's EPYC |"
            )
        return lines if len(lines) > 2 else []

    def _paging(self) -> list[str]:
        lines = [
            "| twice the memory that it may have | a page is used, all are there | half are there "
            "| pages that came back | requests for each | switches for each | on the paper's EPYC |",
            "|---|---|---|---|---|---|---|",
        ]
        for item in self.paging:
            lines.append(
                f"| {item.name} | {item.all_there:.1f} us | {item.half_there:.1f} us | {item.returned:.2f} "
                f"| {item.requests:.2f} | {item.switches:.2f} | {item.switches * _SWITCH_US:.1f} us |"
            )
        return lines if self.paging else []

    def _switches(self) -> list[str]:
        lines = ["| | this computer | two switches on the paper's EPYC |", "|---|---|---|"]
        lines += [f"| {item.name} | {item.microseconds:.2f} us | {2 * _SWITCH_US:.1f} us |" for item in self.switches]
        return lines if self.switches else []

    def plot(self, file: Path) -> None:
        """A picture (its format is the name's ending); needs matplotlib (`pip install veil[bench]`)."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        panels = [
            draw
            for draw, measured in (
                (self._plot_programs, self.programs),
                (self._plot_calls, self.calls),
                (self._plot_making, self.making),
                (self._plot_switches, self.switches or self.ring),
            )
            if measured
        ]
        figure, grid = pyplot.subplots(
            len(panels), 1, figsize=(8, 3 * len(panels)), layout="constrained", squeeze=False
        )
        for draw, (axes,) in zip(panels, grid, strict=True):
            draw(axes)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        figure.savefig(file, dpi=110)
        pyplot.close(figure)

    def _plot_programs(self, axes: Any) -> None:
        axes.set_title("programs: time against native (%; dashed: the paper's least and most)", fontsize=9)
        places = range(len(self.programs))
        spreads = [_quartiles(item.ratios) for item in self.programs]
        heights = [(middle - 1) * 100 for _, middle, _ in spreads]
        errors = ([(m - low) * 100 for low, m, _ in spreads], [(high - m) * 100 for _, m, high in spreads])
        axes.bar(places, heights, 0.6, yerr=errors, capsize=2, color="#2a6f97")
        for place, item, height in zip(places, self.programs, heights, strict=True):
            rate = sum(item.exits.values()) / statistics.median(item.shielded)
            text = f"{rate:,.0f} exits/s"
            axes.annotate(text, (place, max(0, height)), (0, 3), textcoords="offset points", ha="center", size=6)
        for value in _PAPER_PROGRAMS:
            axes.axhline(value, color="black", linewidth=0.8, linestyle="--")
        names = [item.program.name.replace(" ", "\n") for item in self.programs]
        axes.set_xticks(list(places), names, fontsize=6)

    def _plot_calls(self, axes: Any) -> None:
        axes.set_title("system calls: times native", fontsize=9)
        rows = [item for item in self.calls if item.name in IN_PAPER]
        places = range(len(rows))
        axes.bar(places, [item.ratio for item in rows], 0.6, color="#2a6f97")
        for value in (1, *_PAPER_CALLS):
            axes.axhline(value, color="black", linewidth=0.8, linestyle="-" if value == 1 else "--")
        axes.set_xticks(list(places), [item.name for item in rows], fontsize=7)

    def _plot_making(self, axes: Any) -> None:
        axes.set_title("making an enclave, dashed: its end (ms by MiB)", fontsize=9)
        for item, colour in zip(self.making, ("#013a63", "#89c2d9", "#2a6f97"), strict=False):
            axes.plot(item.sizes, item.making, marker="o", color=colour, label=f"{_KINDS[item.name]}")
            axes.plot(item.sizes, item.unmaking, marker="o", color=colour, linestyle="--")
        axes.legend(frameon=False, fontsize=7)

    def _plot_switches(self, axes: Any) -> None:
        axes.set_title("microseconds", fontsize=9)
        axes.set_xscale("log")
        bars = [(item.name.replace("domain switch ", ""), item.microseconds) for item in self.switches]
        if self.ring is not None:
            bars += [
                (f"one of {self.ring.members} enclaves to the next", self.ring.shielded),
                ("the same, native", self.ring.native),
            ]
        axes.barh(range(len(bars)), [value for _, value in bars], 0.6, color="#2a6f97")
        axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
        for place, (_, value) in enumerate(bars):
            axes.annotate(f"{value:.1f}", (value, place), (3, 0), textcoords="offset points", va="center", size=7)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
