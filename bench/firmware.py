# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock firmware, from the launch to the first line of the kernel that it starts: Veil, and QEMU with the same files.

The firmware is Debian's ordinary one, which starts a kernel that nobody measured: QEMU has no hashes without SNP.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.guests import MEMORY, QEMU, QemuFailed, qemu_version
from bench.report import Rate
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.linux.kernel import debian_kernel
from veil.guest.packages import unpacked_package
from veil.host.devices import BootItems, board_contents

__all__ = ["measure_firmware"]

_LINE = b"Linux version"
_COMMAND_LINE = "console=ttyS0 earlyprintk=serial,ttyS0,115200"


def measure_firmware(directory: Path, turns: int, *, qemu: bool) -> Iterator[Rate]:
    """Medians of processor time, of so many boots each, in turns."""
    cache = Cache()
    firmware = unpacked_package(cache, "ovmf", suite="trixie") / "usr/share/ovmf/OVMF.fd"
    kernel = directory / "bzImage"
    kernel.write_bytes(debian_kernel(cache).load_bzimage())
    seconds: dict[str, list[float]] = {}
    for _ in range(turns):
        seconds.setdefault("Veil", []).append(_veil(firmware, kernel))
        if qemu and qemu_version() is not None:
            seconds.setdefault("QEMU", []).append(_qemu(firmware, kernel))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        yield Rate(f"stock firmware to the kernel's first line, {name}", median * 1e3, "ms")
    if "QEMU" in medians:
        yield Rate("  Veil/QEMU", 100 * medians["Veil"] / medians["QEMU"], "%")


def _veil(firmware: Path, kernel: Path) -> float:
    vm = ConfidentialVM(MEMORY, monitor=False, firmware=firmware, kernel="none")
    printed = bytearray()

    def feed(data: bytes) -> None:
        printed.extend(data)
        if _LINE in printed:
            vm.hypervisor.stop()

    begin = time.process_time()
    try:
        vm.launch()
        vm.platform.serial.output = feed
        boot = BootItems(kernel.read_bytes(), b"", f"{_COMMAND_LINE}\0".encode())
        # No option does this: firmware that does not check its kernel is refused one.
        config: Any = vm.platform._firmware["firmware configuration"]
        config._items |= board_contents(MEMORY, [], 1, boot).items
        vm.hypervisor.run()
        return time.process_time() - begin
    finally:
        vm.close()


def _qemu(firmware: Path, kernel: Path) -> float:
    process = subprocess.Popen(
        [
            QEMU, "-accel", "tcg,thread=single", "-machine", "q35", "-cpu", "max,la57=off", "-nodefaults", "-no-reboot",
            "-m", f"{MEMORY >> 20}M", "-display", "none", "-serial", "stdio", "-bios", str(firmware),
            "-kernel", str(kernel), "-append", _COMMAND_LINE,
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    printed = b""
    try:
        while _LINE not in printed:
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                raise QemuFailed("QEMU ended before its firmware had started a kernel")
            printed += data
        # Of its threads until now, user and system (proc(5)).
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
