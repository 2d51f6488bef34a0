# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot data, the initramfs and the agent, tried on another machine than ours: QEMU."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.guest.agent.agent_process import Collected
from tests.guest.qemu_guest import missing_tools, qemu_guest
from veil.cache import Cache
from veil.formats.tsc import TSC_KHZ
from veil.guest.initramfs.contents import build_initramfs
from veil.guest.linux.boot import prepare_linux
from veil.guest.linux.cmdline import command_line
from veil.guest.linux.kernel import debian_kernel

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason="QEMU and binutils are needed"),
]

MODULES = ["configfs", "tsm"]


@pytest.mark.parametrize(
    ("series", "memory", "vcpus"), [("6.12", 4096, 2), pytest.param("6.1", 256, 1, marks=pytest.mark.soak)]
)
def test_stock_kernel_boots_from_our_data(tmp_path: Path, series: str, memory: int, vcpus: int) -> None:
    # On a computer with three times as much to do as it has processors, one guest of QEMU's in a hundred stays in
    # "Preparing to enter system sleep state S5". Whoever never powers off fails twice.
    for attempt in range(2):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        try:
            _boots(directory, series, memory, vcpus)
            return
        except subprocess.TimeoutExpired:
            if attempt:
                raise


def _boots(directory: Path, series: str, memory: int, vcpus: int) -> None:
    cache = Cache()
    kernel = debian_kernel(cache, series)
    initrd = build_initramfs(cache, module_tree=kernel.modules, modules=MODULES if series != "6.1" else [])
    # QEMU's clock runs at another rate than ours: what says so is overridden.
    text = command_line("loglevel=7", tsc_khz=TSC_KHZ)
    words = [word for word in text.split() if not word.startswith(("tsc", "lpj"))]
    boot = prepare_linux(
        kernel.load(), initrd, " ".join(words), memory=memory << 20, vcpus=vcpus, monitor_size=16 << 20, c_bit=None
    )
    with qemu_guest(boot, directory, vcpus=vcpus) as guest:
        start = time.monotonic()
        guest.open(nonce=0x5EED)
        print("ready after", time.monotonic() - start)
        script = "uname -r; nproc; cut -d' ' -f1 /proc/modules; cat /proc/cmdline; grep MemTotal /proc/meminfo"
        result = guest.run("sh", "-c", script)
        release, processors, *modules, line, total = result.stdout.decode().splitlines()
        assert (release, processors, line) == (kernel.release, str(vcpus), boot.command_line)
        assert set(modules) >= {name for name in MODULES if series != "6.1"}
        assert int(total.split()[1]) > (memory * 0.96 - 90) * 1024
        warnings = guest.run("dmesg", "-r").stdout.decode()
        assert "Call Trace" not in warnings
        print(warnings)
        data = os.urandom(5_000_000)
        assert guest.put(Path("/root/dir/file"), data).exit.code == 0
        assert guest.get("/root/dir/file").stdout == data
        job = guest.connection.run(["poweroff"], environment={"PATH": "/sbin:/bin"})
        guest.jobs[job] = Collected()
        for _ in range(2):
            guest.step()
        assert guest.process.wait(30) == 0
    assert "reboot: Power down" in (directory / "console").read_text()
