# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m fuzz.steered TARGET FINDINGS CORPUS SECONDS: a target whose code is no Python, which atheris cannot see.

The target says itself how much of its code was reached. An input by which that grows is kept, and mutated in turn;
atheris would see no difference between any two inputs, keep none, and mutate nothing. What is said is what
`fuzz.guided` says.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from pathlib import Path

from fuzz.mutations import mutated
from fuzz.progress import PULSE
from fuzz.target import Target, examine
from fuzz.targets import TARGETS

__all__ = ["steer"]


def steer(target: Target, findings: Path, corpus: Path, seconds: float, chance: random.Random) -> int:
    """How many inputs there were. Each finding is written once, and named on standard output."""
    assert target.reached is not None
    pool = [*target.seeds(), *(path.read_bytes() for folder in (corpus, findings) for path in sorted(folder.iterdir()))]
    first, seen, inputs = pool.copy(), set[str](), 0
    end, told = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        if time.monotonic() > told + 1:
            told = time.monotonic()
            print(f"{PULSE}{inputs}", flush=True)
        data = first.pop() if first else mutated(chance, target, pool)
        before = target.reached()
        finding = examine(target, data)
        inputs += 1
        name = hashlib.sha256(data).hexdigest()[:20]
        if target.reached() > before and data not in pool:
            pool.append(data)
            (corpus / name).write_bytes(data)
        # The place is the line that looked, the same for all.
        if finding is not None and finding.what not in seen:
            seen.add(finding.what)
            (findings / name).write_bytes(data)
            print(f"{target.name}: {finding.what} ({finding.place}): {findings / name}", flush=True)
    return inputs


def main() -> None:
    """The command. Its last words are libFuzzer's."""
    target = TARGETS[sys.argv[1]]
    inputs = steer(target, Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), random.Random())
    assert target.reached is not None
    print(f" cov: {target.reached()} ft: {target.reached()}", file=sys.stderr)
    print(f"stat::number_of_executed_units: {inputs}", file=sys.stderr)


if __name__ == "__main__":
    main()
