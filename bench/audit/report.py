# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures as a table, as JSON and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.audit.evaluation import Outcome
from bench.audit.guests import Way
from bench.audit.path import PathTimes

__all__ = ["json_report", "plot", "text_report"]


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


def text_report(outcomes: Sequence[Outcome], path: PathTimes | None) -> str:
    """Markdown tables."""
    lines = [
        "| | no audit | audit | audit and VeilS-LOG | audit / none | **VeilS-LOG / audit** | two equal guests | "
        "driver, no audit | records/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for item in outcomes:
        cells = [
            item.program.name,
            *(f"{item.median(way):.3f} s" for way in (Way.BARE, Way.AUDIT, Way.LOG)),
            _percent(item.ratio(Way.AUDIT, Way.BARE)),
            f"**{_percent(item.ratio(Way.LOG, Way.AUDIT))}**",
            _percent(item.ratio(Way.AGAIN, Way.AUDIT)),
            _percent(item.ratio(Way.IDLE, Way.BARE)),
            f"{item.records_per_second:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if path is not None:
        lines += _path_table(path)
    return "\n".join(lines)


def _path_table(path: PathTimes) -> list[str]:
    lines = ["", "| a system call's records on their way, alone and warm | |", "|---|---|"]
    return lines + [f"| {name} | {value:.1f} us |" for name, value in path.rows()]


def json_report(outcomes: Sequence[Outcome], path: PathTimes | None) -> dict[str, Any]:
    """Plain values, every turn among them."""
    return {
        "programs": [
            {
                "name": item.program.name,
                "what": item.program.what,
                "seconds": {way.name.lower(): times for way, times in item.seconds.items()},
                "log_to_audit": item.ratio(Way.LOG, Way.AUDIT),
                "again_to_audit": item.ratio(Way.AGAIN, Way.AUDIT),
                "audit_to_bare": item.ratio(Way.AUDIT, Way.BARE),
                "idle_to_bare": item.ratio(Way.IDLE, Way.BARE),
                "records": item.records,
                "switches": item.calls,
                "records_per_second": item.records_per_second,
                "microseconds_per_switch": item.microseconds_per_call,
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

    names = [f"{item.program.name}\n{item.records_per_second:,.0f} rec/s" for item in outcomes]
    places = range(len(outcomes))
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for shift, way, label, colour in (
        (-0.2, Way.AGAIN, "a second guest with audit (noise)", "#b0b0b0"),
        (0.2, Way.LOG, "audit and VeilS-LOG", "#2a6f97"),
    ):
        quarters = [statistics.quantiles(item.ratios(way, Way.AUDIT), n=4) for item in outcomes]
        heights = [(middle - 1) * 100 for _, middle, _ in quarters]
        spread = (
            [(middle - low) * 100 for low, middle, _ in quarters],
            [(high - middle) * 100 for _, middle, high in quarters],
        )
        axes.bar([place + shift for place in places], heights, 0.38, yerr=spread, capsize=3, label=label, color=colour)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(list(places), names)
    axes.set_ylabel("time against audit alone (%)")
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
