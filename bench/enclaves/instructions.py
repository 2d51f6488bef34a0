# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of the guest for a system call, native and shielded, by an engine that counts them.

`python -m bench.enclaves.instructions`, in a process of its own (VEIL_ENGINE_COUNTS=1), prints them as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.enclaves.calls import CALLS, put_calls
from bench.enclaves.guest import EnclaveGuest, boot_guest
from veil.snp import build_engine

__all__ = ["count_instructions"]

#: Calls that need no other beside them to be made again and again.
_ALONE = ("getpid", "umask", "read", "write", "memory")
_FEW, _MANY = 10, 110


def count_instructions() -> dict[str, tuple[float, float]]:
    """By what is called (`CALLS`): (native, shielded)."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.enclaves.instructions"],
        env={**os.environ, "VEIL_ENGINE_COUNTS": "1"}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return {name: (native, shielded) for name, (native, shielded) in json.loads(done.stdout).items()}


def _count() -> dict[str, tuple[float, float]]:
    build_engine(lambda text: print(f"bench: {text}", file=sys.stderr))
    found = {}
    with boot_guest({}) as vm, tempfile.TemporaryDirectory(prefix="veil-bench-") as name:
        guest = EnclaveGuest(vm)
        counters = vm.machine.counters
        commands = put_calls(guest, Path(name))
        for call in _ALONE:
            each = []
            for command in commands:
                totals, calls = [], 1.0
                for batches in (_FEW, _FEW, _MANY):
                    before = counters.instructions
                    calls = float(guest.run(command.format(name=call, batches=batches)).output.split()[1])
                    totals.append(counters.instructions - before)
                each.append((totals[2] - totals[1]) / (_MANY - _FEW) / calls)
            found[CALLS[call]] = each[0], each[1]
    return found


if __name__ == "__main__":
    print(json.dumps(_count()))
