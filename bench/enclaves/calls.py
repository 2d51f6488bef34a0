# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of system calls: one static program (`bench/programs/system_calls.c`), as it is and shielded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.enclaves.guest import EnclaveGuest
from bench.programs import build_program
from veil.cache import Cache
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import ComputerFiles

__all__ = ["CALLS", "IN_PAPER", "CallCost", "measure_calls", "put_calls"]

_FOLDER = "/mnt/calls"

#: What the program knows, and what it is.
CALLS = {
    "open": "open",
    "read": "read of 10 KiB",
    "write": "write of 10 KiB",
    "mmap": "mmap of 10 KiB",
    "munmap": "munmap of 10 KiB that nobody touched",
    "getpid": "getpid",
    "socket": "socket",
    "printf": "printf of 10 KiB",
    "memory": "mmap of 10 KiB, a byte written to each page, munmap",
    "umask": "umask, the shortest that leaves the enclave",
}
#: Those that the paper's table has.
IN_PAPER = ("open", "read", "write", "mmap", "munmap", "getpid", "socket", "printf")


@dataclass(frozen=True)
class CallCost:
    """One row, for each call."""

    name: str
    what: str
    native: float
    """Microseconds by the guest's clock; the least of all batches."""
    shielded: float
    switches: float
    """Domain switches, one way each."""
    bytes: float
    """That are copied into or out of the enclave."""

    @property
    def ratio(self) -> float:
        """How many times longer."""
        return self.shielded / self.native


def put_calls(guest: EnclaveGuest, directory: Path) -> tuple[str, str]:
    """The commands, native and shielded, with {name} and {batches}."""
    program = build_program("system_calls", directory)
    manifest = Manifest.of(
        {
            "memory": "4M", "threads": 1, "arguments": {"outside": True}, "files": {"pass": [f"{_FOLDER}/"]},
            "calls": {"allow": ["network"]},
        }
    )  # fmt: skip
    image = build_enclave(Cache(), ComputerFiles(), str(program), manifest)
    guest.vm.copy_in(program, "/root/system_calls")
    guest.run(f"mkdir -p {_FOLDER}; chmod +x /root/system_calls")
    native, shielded = "/root/system_calls", guest.put_image("calls", image, directory)
    rest = f"{{name}} {{batches}} {_FOLDER}"
    return f"{native} {rest}", f"{shielded} {rest}"


def measure_calls(
    guest: EnclaveGuest, directory: Path, batches: int, rounds: int, say: Callable[[str], None]
) -> list[CallCost]:
    """Native and shielded in turns."""
    commands = put_calls(guest, directory)
    rows = []
    for name, what in CALLS.items():
        say(f"system calls: {name}")
        calls, least = 1.0, [float("inf"), float("inf")]
        for _ in range(rounds):
            for place, command in enumerate(commands):
                spent, calls = map(float, guest.run(command.format(name=name, batches=batches)).output.split())
                least[place] = min(least[place], spent)
        with guest.observe() as observer:
            guest.run(commands[1].format(name=name, batches=1))
        # Mark, batch that warms up, mark, what undoes it, mark, batch, mark.
        counted = observer.marked[2]
        switches = max(0, counted.switches - 2) / calls  # the mark itself leaves and enters
        rows.append(CallCost(name, what, least[0] / 1000, least[1] / 1000, switches, counted.bytes / calls))
    return rows
