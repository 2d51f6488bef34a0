# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest of Veil's in a process of its own, which takes commands as lines of JSON (`ProcessGuest` sends them).

A process for each boot: its address space and heap are as new as in a user's command, and the processor time of the
process is what the guest has cost.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.guests import Cost, VeilGuest
from veil.snp import COUNTER_NAMES
from veil.snp.rmp import EntryFlag

__all__: list[str] = []


def _counts(guest: VeilGuest) -> dict[str, int]:
    counters = guest.vm.machine.counters
    flags = guest.vm.machine.rmp.entries["flags"]
    large = flags & EntryFlag.SIZE_2M != 0
    return {
        **{name: getattr(counters, name) for name in COUNTER_NAMES},
        **guest.vm.hypervisor.counters(),
        "RMP entries of 2 MiB": int(np.count_nonzero(large)),
        "RMP entries of 4 KiB": int(np.count_nonzero(~large & (flags & EntryFlag.ASSIGNED != 0))),
    }


def _serve(name: str) -> None:
    # Answers go to the parent alone, whatever else prints.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    guest = VeilGuest(name, monitor=name == "veil")

    def answer(cost: Cost) -> None:
        value: dict[str, Any] = {**dataclasses.asdict(cost), "counts": _counts(guest)}
        print(json.dumps(value), file=out, flush=True)

    try:
        answer(guest.boot)
        for line in sys.stdin:
            request = json.loads(line)
            if "put" in request:
                guest.put(Path(request["put"]), request["target"])
                answer(Cost(0, 0))
            else:
                answer(guest.run(request["run"]))
    finally:
        guest.close()


if __name__ == "__main__":
    _serve(sys.argv[1])
