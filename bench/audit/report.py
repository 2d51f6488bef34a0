# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures as tables, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.audit.evaluation import Outcome, Spread
from bench.audit.guests import BARE, IDLE, Setup
from bench.audit.path import PathTimes

__all__ = ["json_report", "plot", "text_report"]

#: VeilS-LOG against audit alone, the highest of the paper's programs
_PAPER_HIGHEST = 18.7


def _percent(value: float) -> str:
    return f"{(value - 1) * 100:+.1f} %"


def _spread(spread: Spread) -> str:
    return f"{_percent(spread.median)} ({_percent(spread.low)} to {_percent(spread.high)})"


def text_report(outcomes: Sequence[Outcome], path: PathTimes | None) -> str:
    """Markdown tables; in parentheses the quartiles."""
    rules = list(outcomes[0].records)
    lines = ["No audit:", "", "| | no driver | driver | driver / none |", "|---|---|---|---|"]
    for item in outcomes:
        times = (f"{item.median(setup):.3f} s" for setup in (BARE, IDLE))
        lines.append(f"| {item.program.name} | {' | '.join(times)} | {_spread(item.idle())} |")
    for name in rules:
        lines += [
            "", f"Rules {name!r}:", "",
            "| | audit | audit and VeilS-LOG | audit / none | VeilS-LOG / audit | records/s |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for item in outcomes:
            cells = [
                item.program.name,
                *(f"{item.median(Setup(driver, name)):.3f} s" for driver in (False, True)),
                _percent(item.audit(name).median),
                _spread(item.log(name)),
                f"{item.records_per_second(name):,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if path is not None:
        lines += _path_table(path)
    return "\n".join(lines)


def _path_table(path: PathTimes) -> list[str]:
    lines = ["", "| a system call's records on their way, alone and warm | |", "|---|---|"]
    return lines + [f"| {name} | {value:.1f} us |" for name, value in path.rows()]


def json_report(outcomes: Sequence[Outcome], path: PathTimes | None) -> dict[str, Any]:
    """Plain values, every round among them."""
    return {
        "programs": [
            {
                "name": item.program.name,
                "what": item.program.what,
                "seconds": {str(setup): times for setup, times in item.seconds.items()},
                "driver_without_audit": asdict(item.idle()),
                "rules": {
                    name: {
                        "audit_to_none": asdict(item.audit(name)),
                        "log_to_audit": asdict(item.log(name)),
                        "records": item.records[name],
                        "switches": item.calls[name],
                        "records_per_second": item.records_per_second(name),
                    }
                    for name in item.records
                },
            }
            for item in outcomes
        ],
        "path_microseconds": dict(path.rows()) if path is not None else None,
    }


def plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """A picture (its format is the name's ending); needs matplotlib (`pip install veil[bench]`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rules = list(outcomes[0].records)
    bars = [("driver, no audit", "#c8c8c8", [item.idle() for item in outcomes])]
    for name, colour in zip(rules, ("#89c2d9", "#2a6f97", "#013a63"), strict=False):
        bars.append((f"VeilS-LOG, rules '{name}'", colour, [item.log(name) for item in outcomes]))
    places = range(len(outcomes))
    width = 0.8 / len(bars)
    figure, axes = pyplot.subplots(figsize=(8, 3.4), layout="constrained")
    for index, (label, colour, spreads) in enumerate(bars):
        heights = [(item.median - 1) * 100 for item in spreads]
        errors = ([(i.median - i.low) * 100 for i in spreads], [(i.high - i.median) * 100 for i in spreads])
        at = [place + (index - (len(bars) - 1) / 2) * width for place in places]
        axes.bar(at, heights, width * 0.9, yerr=errors, capsize=2, label=label, color=colour)
        if index:
            rates = [item.records_per_second(rules[index - 1]) for item in outcomes]
            for x, height, error, rate in zip(at, heights, errors[1], rates, strict=True):
                place = (x, max(0, height) + error)
                axes.annotate(f"{rate / 1000:.1f}k/s", place, (0, 3), textcoords="offset points", ha="center", size=6)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(_PAPER_HIGHEST, color="black", linewidth=0.8, linestyle="--")
    axes.text(-0.55, _PAPER_HIGHEST + 0.6, "the paper's highest, 18.7 %", fontsize=7)
    axes.set_xticks(list(places), [item.program.name for item in outcomes])
    axes.set_ylabel("time against the same guest without (%)")
    axes.legend(frameon=False, fontsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
