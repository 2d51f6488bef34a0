# SPDX-License-Identifier: GPL-2.0-or-later
"""How long an enclave takes to be made and unmade, by its size; and the way round many of them on one VCPU."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.enclaves.guest import EnclaveGuest
from bench.programs import build_program
from veil.cache import Cache
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import ComputerFiles

__all__ = ["Making", "Ring", "measure_making", "measure_ring"]

MIB = 1 << 20
_PROGRAM = """\
#ifdef SIZE
static char content[SIZE] = { 1 };
#endif
__attribute__((used)) void begin(void)
{
#ifdef SIZE
	__asm__ volatile("" : : "r"(content));
#endif
#ifdef TOUCHED
	register long flags __asm__("r10") = 0x22, fd __asm__("r8") = -1, offset __asm__("r9") = 0;
	char *place;
	__asm__ volatile("syscall"
		: "=a"(place) : "0"(9L), "D"(0L), "S"((long)TOUCHED), "d"(3L), "r"(flags), "r"(fd), "r"(offset)
		: "rcx", "r11", "memory");
	for (long at = 0; at < TOUCHED; at += 4096)
		place[at] = 1;
#endif
	__asm__ volatile("syscall" : : "a"(231), "D"(0));
}
__asm__(".globl _start\\n_start: call begin\\n");
"""
_FLAGS = ("-O2", "-static", "-nostdlib", "-fno-stack-protector")


@dataclass(frozen=True)
class Making:
    """Enclaves of one kind: milliseconds by MiB, and the line through them."""

    name: str
    sizes: tuple[int, ...]
    """MiB."""
    making: tuple[float, ...]
    """Milliseconds: from the first request to VeilS-ENC to the end of the last; of touched memory, the whole run."""
    unmaking: tuple[float, ...]

    @property
    def per_mib(self) -> tuple[float, float]:
        """(making, unmaking), milliseconds."""
        lines = (statistics.linear_regression(self.sizes, times) for times in (self.making, self.unmaking))
        making, unmaking = (line.slope for line in lines)
        return making, unmaking


def measure_making(guest: EnclaveGuest, directory: Path, turns: int, say: Callable[[str], None]) -> list[Making]:
    """Content, which is copied and measured; memory that nobody touches, and memory that comes when it is touched."""
    kinds: dict[str, tuple[int, ...]] = {"content": (1, 4, 16), "memory": (1, 16, 64), "touched": (1, 16, 64)}
    made = []
    for name, sizes in kinds.items():
        times: list[tuple[float, float]] = []
        for size in sizes:
            say(f"making: {size} MiB of {name}")
            program = _program(directory, name, size)
            memory = 1 if name == "content" else size + 1
            manifest = Manifest.of({"memory": f"{memory}M", "threads": 1, "stack": "64K"})
            command = guest.put_image(
                "made", build_enclave(Cache(), ComputerFiles(), str(program), manifest), directory
            )
            costs = [guest.run(command) for _ in range(turns)]
            took = [cost.running if name == "touched" else cost.making for cost in costs]
            times.append((min(took) * 1000, min(cost.unmaking for cost in costs) * 1000))
        made.append(Making(name, sizes, tuple(one for one, _ in times), tuple(other for _, other in times)))
    return made


def _program(directory: Path, kind: str, mib: int) -> Path:
    source, out = directory / "made.c", directory / "made"
    source.write_text(_PROGRAM)
    defined = {"content": [f"-DSIZE={mib * MIB}"], "touched": [f"-DTOUCHED={mib * MIB}L"], "memory": []}
    subprocess.run(["cc", *_FLAGS, *defined[kind], "-o", out, source], check=True)
    return out


@dataclass(frozen=True)
class Ring:
    """Programs that hand a byte on, each to the next: microseconds from one to the next."""

    members: int
    native: float
    shielded: float
    switches: float
    """Domain switches from one to the next, one way each."""


_MAKE = """\
cd /mnt && rm -rf ring && mkdir ring && cd ring
for i in $(seq 0 {last}); do mkfifo $i; done
i=0
while [ $i -lt {last} ]; do
  {command} <$i >$((i + 1)) 2>/dev/null &
  i=$((i + 1))
done
/root/ring {turns} 0 {last}
wait
"""


def measure_ring(guest: EnclaveGuest, directory: Path, members: int, turns: int) -> Ring:
    """As they are, and in enclaves. Each waits in the kernel while the others run."""
    program = build_program("ring", directory, "-nostdlib", "-fno-stack-protector")
    guest.vm.copy_in(program, "/root/ring")
    guest.run("chmod +x /root/ring")
    image = build_enclave(
        Cache(), ComputerFiles(), str(program), Manifest.of({"memory": "1M", "threads": 1, "stack": "64K"})
    )
    shielded = guest.put_image("ring", image, directory)
    spent, switches = [], 0.0
    for command in ("/root/ring", shielded):
        costs = [guest.run(_MAKE.format(last=members, command=command, turns=many)) for many in (1, turns)]
        spent.append(float(costs[1].output) / members / 1000)
        switches = (costs[1].switches - costs[0].switches) / (turns - 1) / members
    return Ring(members, spent[0], spent[1], switches)
