# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots our boot data in QEMU, whose firmware is replaced by a jump into the state that a VMSA would hold.

Everything but the encryption is the real thing: page tables, boot_params, ACPI tables, initramfs, agent.
"""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.guest.agent.agent_process import AgentProcess
from veil.guest.agent.protocol import AgentConnection
from veil.guest.linux.boot import LinuxBoot

HERE = Path(__file__).parent
TOOLS = ("qemu-system-x86_64", "as", "ld", "objcopy", "cc")


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def build_rom(boot: LinuxBoot, directory: Path) -> Path:
    state = boot.registers
    values = {
        "ENTRY": state.rip, "BOOT_PARAMS": state.rsi, "STACK_TOP": state.rsp, "CR3_VALUE": state.cr3,
        "CR0_VALUE": state.cr0, "CR4_VALUE": state.cr4, "EFER_VALUE": state.efer & ~0x1400,
        "GDT_LIMIT": state.gdtr.limit, "GDT_BASE": state.gdtr.base,
    }  # fmt: skip
    source, program, rom = HERE / "trampoline.S", directory / "rom.elf", directory / "rom.bin"
    defines = [f"-D{name}={value:#x}" for name, value in values.items()]
    link = ["-nostdlib", "-static", "-Wl,-Ttext=0xFFFF0000", "-Wl,--build-id=none", "-Wl,-e,_start"]
    subprocess.run(["cc", *link, *defines, "-o", program, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", program, rom], check=True)
    return rom


class QemuAgent(AgentProcess):
    """The agent of a guest in QEMU."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                assert process.poll() is None, "QEMU did not start"
                assert time.monotonic() < deadline, "QEMU does not answer"
                time.sleep(0.05)
        self.socket.setblocking(False)
        self.connection = AgentConnection()
        self.jobs, self.events, self.unsent, self.stalled = {}, [], b"", set()


@contextlib.contextmanager
def qemu_guest(boot: LinuxBoot, directory: Path, *, vcpus: int = 1) -> Iterator[QemuAgent]:
    rom = build_rom(boot, directory)
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max", "-machine", "pc", "-nodefaults",
        "-no-reboot", "-smp", str(vcpus), "-m", f"{boot.layout.memory >> 20}M", "-display", "none",
        "-bios", str(rom), "-serial", f"file:{directory}/console", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={directory}/agent,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=veil.agent",
    ]  # fmt: skip
    for number, region in enumerate(boot.regions):
        path = directory / f"region{number}"
        path.write_bytes(region.data)
        command += ["-device", f"loader,file={path},addr={region.gpa:#x},force-raw=on"]
    process = subprocess.Popen(command)
    try:
        yield QemuAgent(directory / "agent", process)
    finally:
        process.kill()
        process.wait()
