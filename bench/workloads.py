# SPDX-License-Identifier: GPL-2.0-or-later
"""The workloads: the same commands for every guest.

Each takes a fraction of a second: a computer whose speed changes has seconds of its own, and what is run often meets
the fast ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.guests import Guest
from bench.programs import build_program

__all__ = ["BOOT", "WORKLOADS", "Workload", "prepare"]

#: The name of the boot's row.
BOOT = "boot to first command"

_PREPARE = (
    "mount -t tmpfs -o size=200m tmpfs /mnt && head -c 8388608 /dev/zero >/mnt/zeros && "
    "cat /bin/busybox /bin/busybox | head -c 2097152 >/mnt/text"
)
_FORKS = "i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i+1)); done"


@dataclass(frozen=True)
class Workload:
    """A command and what it shows."""

    name: str
    argv: Sequence[str]


WORKLOADS = (
    Workload("sha256sum of 8 MiB", ["sha256sum", "/mnt/zeros"]),
    Workload("gzip of 2 MiB", ["sh", "-c", "gzip -c /mnt/text >/dev/null"]),
    Workload("50 times fork and exec, in a shell", ["sh", "-c", _FORKS]),
    Workload("random access over 64 MiB", ["/root/memory"]),
)


def prepare(guest: Guest, directory: Path) -> None:
    """Bring in what the workloads work on; the program is built in `directory`."""
    guest.put(build_program("memory", directory), "/root/memory")
    guest.run(["sh", "-c", _PREPARE])
