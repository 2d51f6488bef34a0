# SPDX-License-Identifier: GPL-2.0-or-later
"""Microseconds: transitions of a guest, snapshots, and `veil run`."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.programs import build_program, build_raw
from bench.report import Latency
from veil.cvm import ConfidentialVM
from veil.formats.board import C_BIT
from veil.formats.ghcb import MsrResponse
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.guest.elf import ElfKernel, Segment
from veil.guest.linux import layout
from veil.host import GuestTerminated, Hypervisor
from veil.host.devices import Platform
from veil.image.launch_image import build_image
from veil.snp import Machine, Permission
from veil.snp.layouts import Vmsa, VmsaSegment

__all__ = ["measure_calls", "measure_command", "measure_snapshots", "measure_traps", "run_calls"]

_MEMORY = 64 << 20
_KERNEL = 16 << 20
_RESULTS = _KERNEL + 0x100000
_RUNS = 5

#: what a context of VMPL 2 needs: code, three page tables, its VMSA
_ENCLAVE = _KERNEL + 0x200000
_ENCLAVE_VMSA = _ENCLAVE + 4 * PAGE_SIZE
#: VMGEXIT, and again
_LEAVE_FOREVER = bytes.fromhex("f30f01d9 ebfa")

_CALLS = (
    "#VC round trip (CPUID, a handler of three instructions)",
    "VMGEXIT to the host and back (MSR protocol)",
    "domain switch VMPL 3 -> 0 -> 3",
    "null SVSM call",
    "domain switch VMPL 3 -> 2 -> 3",
)
_ENCLAVE_CALL = len(_CALLS) - 1
_TRAPS = {
    "cpuid-table": "#VC in Linux: CPUID answered from the CPUID page",
    "cpuid-host": "#VC in Linux: CPUID leaf 1, with a GHCB exit",
    "port-write": "#VC in Linux: OUT to port 80h, with a GHCB exit",
}


def _make_enclave(machine: Machine, kernel_vmsa: int) -> None:
    """What VeilMon does for VeilS-ENC: a context of VMPL 2 that leaves as soon as it is entered."""
    view, host = machine.view(vmpl=0), machine.host_view()
    host.psmash(_ENCLAVE & -PAGE_SIZE_2M)
    link, large = C_BIT | 7, 0x80
    tables = [_ENCLAVE + number * PAGE_SIZE for number in (1, 2, 3)]
    view.write(_ENCLAVE, _LEAVE_FOREVER)
    view.write_u64(tables[0], tables[1] | link)
    view.write_u64(tables[1], tables[2] | link)
    view.write_u64(tables[2] + 8 * (_ENCLAVE // PAGE_SIZE_2M), _ENCLAVE | link | large)
    for gpa in (_ENCLAVE, *tables):
        view.rmpadjust(gpa, vmpl=2, permissions=Permission.RW | Permission.UX)
    vmsa = Vmsa.from_buffer_copy(view.read(kernel_vmsa, PAGE_SIZE))
    vmsa.vmpl, vmsa.cpl, vmsa.rip, vmsa.cr3, vmsa.cr4, vmsa.rflags = 2, 3, _ENCLAVE, tables[0] | C_BIT, 0x620, 2
    vmsa.cs, vmsa.ss = VmsaSegment(0x23, 0xAFB, 0xFFFFFFFF, 0), VmsaSegment(0x1B, 0xCF3, 0xFFFFFFFF, 0)
    view.write(_ENCLAVE_VMSA, bytes(vmsa))
    view.rmpadjust(_ENCLAVE_VMSA, vmpl=3, permissions=0, vmsa=True)


def run_calls(directory: Path, count: int, *, switches_by_machine: bool = True) -> list[float]:
    """Launch the small kernel under VeilMon; nanoseconds for each of its transitions."""
    code = build_raw(
        "calls", directory, address=_KERNEL, COUNT=count, RESULTS=_RESULTS, CAA=layout.CAA, ENCLAVE_VMSA=_ENCLAVE_VMSA
    )
    kernel = ElfKernel(
        _KERNEL,
        (Segment(_KERNEL, _KERNEL, code, len(code)), Segment(_RESULTS, _RESULTS, bytes(4096), 4096)),
    )
    with Machine(_MEMORY, hosted=True) as machine:
        platform = Platform(
            machine.host_view(), vcpus=1, now_ns=time.monotonic_ns, tsc=machine.tsc, console=lambda _: None
        )
        cpuid = machine.cpuid_entries(1)
        table = [item[:6] for item in cpuid]
        hypervisor = Hypervisor(machine, platform, 1, monitor=True, cpuid=table)
        image = build_image(kernel, b"", "", memory=_MEMORY, vcpus=1, monitor=True, cpuid=cpuid)
        hypervisor.launch(image.regions)
        hypervisor.switches_by_machine = switches_by_machine
        first = hypervisor.vcpus[0]
        hypervisor.run(until=lambda: first.vmpl == 3)
        _make_enclave(machine, first.contexts[3].vmcb.vmsa_pa)
        hypervisor.enclaves.add(_ENCLAVE_VMSA)
        try:
            # As when a command runs: the run loop asks at every exit whether to come back.
            hypervisor.run(until=lambda: False)
        except GuestTerminated as end:
            if (end.reason_set, end.code) != (0, 0):
                raise
        view = machine.view(vmpl=3)
        values = [view.read_u64(_RESULTS + 8 * number) for number in range(2 * len(_CALLS))]
    if values[2 * _ENCLAVE_CALL + 1] & 0xFFFFFFFF != MsrResponse.RUN_VMPL:
        raise RuntimeError("the benchmark's context of VMPL 2 did not run")
    if values[7] != 0:
        raise RuntimeError(f"the SVSM call of the benchmark failed with {values[7]:#x}")
    return [total / count for total in values[::2]]


def measure_calls(directory: Path) -> Iterator[Latency]:
    """Transitions in machine code of VMPL 3 under the real monitor and host."""
    runs = [run_calls(directory, 5000) for _ in range(_RUNS)]
    for name, values in zip(_CALLS, zip(*runs, strict=True), strict=True):
        yield Latency(name, statistics.median(values) / 1000)
    by_host = [run_calls(directory, 1000, switches_by_machine=False)[_ENCLAVE_CALL] for _ in range(_RUNS)]
    yield Latency(f"{_CALLS[_ENCLAVE_CALL]}, both by the host's Python", statistics.median(by_host) / 1000)


def measure_traps(vm: ConfidentialVM, directory: Path) -> Iterator[Latency]:
    """Transitions through Linux's own #VC handler."""
    vm.copy_in(build_program("traps", directory), "/root/traps")
    output = vm.run(["/root/traps"]).stdout.decode()
    for line in output.splitlines():
        name, nanoseconds = line.split()
        yield Latency(_TRAPS[name], float(nanoseconds) / 1000)


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_snapshots(vm: ConfidentialVM, directory: Path) -> Iterator[Latency]:
    """The whole machine to a file and back until it answers."""
    path = directory / "snapshot"
    saves = [_timed(lambda: vm.snapshot(path)) for _ in range(_RUNS)]
    yield Latency("snapshot save", statistics.median(saves) * 1e6)
    restores = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        restored = ConfidentialVM.restore(path)
        restores.append(time.perf_counter() - start)
        restored.close()
    path.unlink()
    yield Latency("snapshot restore, until the agent answers", statistics.median(restores) * 1e6)


def measure_command() -> Iterator[Latency]:
    """`veil run -- true` with a snapshot in the cache, from the start of the process to its exit."""
    beside = Path(sys.executable).with_name("veil")
    program = str(beside) if beside.exists() else shutil.which("veil")
    command = [program] if program else [sys.executable, "-c", "from veil.cli import main; main()"]
    command += ["run", "--", "true"]
    # As after an installation: with compiled modules.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run() -> None:
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)

    # The first may have to boot, and leaves the snapshot.
    run()
    seconds = statistics.median(_timed(run) for _ in range(_RUNS))
    yield Latency("`veil run -- true`, process start to exit", seconds * 1e6)
