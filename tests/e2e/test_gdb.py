# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's gdb at a booted guest: it breaks in the kernel, steps over calls of VeilMon, and leaves it as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.debugger.gdb import Gdb
from tests.e2e.snapshots import RunSnapshots
from tests.services.kci.debian_image import kernel_image
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.debugging import Debugging
from veil.debugger import Place
from veil.debugger.contexts import read_vmsa
from veil.formats.domains import KERNEL_VMPL, SERVICE_VMPL
from veil.guest.ovmf.package import DEBIAN_FIRMWARE
from veil.host import Event, VmplSwitchEvent

_VEIL = [sys.executable, "-c", "from veil.cli import main; main()"]


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Debugging]:
    with Debugging(Place.parse(str(tmp_path / "socket"))) as made:
        yield made


@pytest.fixture
def debugged(snapshots: RunSnapshots, tool: Debugging) -> Iterator[ConfidentialVM]:
    with ConfidentialVM.restore(snapshots.of(Configuration.make()), tools=[tool]) as vm:
        yield vm


def _symbol_file(folder: Path, *names: str) -> Path:
    """What a vmlinux with symbols would be, which Debian has in a package of a gigabyte."""
    table = kernel_image().symbols
    text = "".join(f".globl {name}\n.type {name}, @function\n{name} = {table[name]:#x}\n" for name in names)
    unit, program = folder / "kernel.o", folder / "kernel.elf"
    subprocess.run(["as", "--64", "-o", unit, "-"], input=text.encode(), check=True)
    subprocess.run(["ld", "-r", "-o", program, unit], check=True)
    return program


def test_breaks_in_the_kernel(debugged: ConfidentialVM, tool: Debugging, tmp_path: Path) -> None:
    symbols = _symbol_file(tmp_path, "__x64_sys_newuname")
    gdb = Gdb(
        [
            f"file {symbols}", f"target remote {tool.address}", "info threads",
            "break *(long) &__x64_sys_newuname", "continue",
            "print/x $rip == (long) &__x64_sys_newuname", "print $cpl", "x/2i $rip", "monitor offset", "stepi",
            "print/x *(long *) $rsp", "x/1gx 0x1000", "delete", "detach",
        ]
    )  # fmt: skip
    done = debugged.run(["sh", "-c", "sleep 1; uname -s"])
    said = gdb.said()
    assert done.stdout == b"Linux\n"
    assert '"VMPL 0" (VCPU 0, VMPL 0 (Python))' in said[2]
    assert '"VMPL 3" (VCPU 0, VMPL 3, current)' in said[2]
    assert "hit Breakpoint 1" in said[4]
    assert said[5] == "$1 = 0x1"
    assert said[6] == "$2 = 0"
    assert said[8] == "the kernel is where it is linked to: file vmlinux"
    assert said[10].startswith("$3 = 0xffffffff8"), "a return address of the kernel's, on its stack"
    assert "Cannot access memory" in said[11]
    assert "detached" in said[13]
    # It runs on without.
    assert debugged.run(["uname", "-s"]).stdout == b"Linux\n"


@pytest.mark.soak
def test_the_kernel_does_not_notice(debugged: ConfidentialVM, tool: Debugging, tmp_path: Path) -> None:
    """Its clock stood still."""
    symbols = _symbol_file(tmp_path, "__x64_sys_newuname")
    gdb = Gdb(
        [
            f"file {symbols}", f"target remote {tool.address}", "break *(long) &__x64_sys_newuname", "continue",
            "shell sleep 5", "delete", "detach",
        ]
    )  # fmt: skip
    done = debugged.run(["sh", "-c", "cut -d' ' -f1 /proc/uptime; sleep 1; uname -s; cut -d' ' -f1 /proc/uptime"])
    gdb.said()
    before, _, after = done.stdout.decode().split()
    assert float(after) - float(before) < 5


def test_steps_over_a_call_of_the_services(debugged: ConfidentialVM, tool: Debugging) -> None:
    """Who is called is Python, and has no instruction to stop at: the step ends behind the kernel's VMGEXIT."""
    places = []

    def see(event: Event) -> None:
        if isinstance(event, VmplSwitchEvent) and (event.vmpl, event.target) == (KERNEL_VMPL, SERVICE_VMPL):
            context = debugged.hypervisor.vcpus[0].contexts[KERNEL_VMPL]
            places.append(read_vmsa(debugged.machine, context.vmcb.vmsa_pa).rip)

    debugged.hypervisor.on_event = see
    debugged.run(["sleep", "2.5"])
    debugged.hypervisor.on_event = None
    behind = places[-1]
    gdb = Gdb(
        [
            f"target remote {tool.address}", f"break *{behind - 4:#x}", "continue", "x/4bx $rip", "delete", "stepi",
            "thread", "monitor switches", "thread 1", "stepi", "thread", "detach",
        ]
    )  # fmt: skip
    assert debugged.run(["sleep", "4"]).exit_status == 0
    said = gdb.said()
    assert said[3].endswith("0xf3\t0x0f\t0x01\t0xd9"), "VMGEXIT"
    assert f"0x{behind:016x}" in said[5]
    assert "Thread 4" in said[6]
    assert "VCPU 0: VMPL 3 left by VMGEXIT" in said[7].splitlines()[-1]
    assert "Thread 4" in said[10], "a step of VeilMon's ends where its VCPU is at an instruction"


@pytest.mark.soak
def test_a_kernel_that_moved_itself_and_two_vcpus(snapshots: RunSnapshots, tool: Debugging) -> None:
    """Behind stock firmware the kernel's own decompressor puts it anywhere (KASLR)."""
    stock = Configuration.make("512M", 2, monitor=False, firmware=DEBIAN_FIRMWARE)
    with ConfidentialVM.restore(snapshots.of(stock), tools=[tool]) as vm:
        table = vm.run(["grep", "-E", " (_text|__x64_sys_newuname)$", "/proc/kallsyms"]).stdout.split()
        places = dict(zip(table[2::3], (int(address, 16) for address in table[::3]), strict=True))
        uname = places[b"__x64_sys_newuname"]
        gdb = Gdb(
            [
                f"target remote {tool.address}", "info threads", f"break *{uname:#x}", "continue", "thread",
                "monitor offset", "continue", "thread", "thread apply all print $rip", "delete", "detach",
            ]
        )  # fmt: skip
        assert vm.run(["sh", "-c", "sleep 2; taskset 1 uname -s; taskset 2 uname -s"]).stdout == b"Linux\nLinux\n"
        said = gdb.said()
    assert 'Thread 1 "VMPL 0" (VCPU 0, VMPL 0' in said[1]
    assert 'Thread 5 "VMPL 0" (VCPU 1, VMPL 0' in said[1]
    # Every start of a program asks for it once more, on whichever VCPU.
    assert all("Thread 1)" in text or "Thread 5)" in text for text in (said[4], said[7]))
    slide = places[b"_text"] - 0xFFFFFFFF81000000
    assert slide
    assert said[5] == f"the kernel is moved by {slide:#x}: symbol-file vmlinux -o {slide:#x}"
    assert [f"{vcpu} (Thread" in said[8] for vcpu in (1, 2)] == [True, True]
    assert f"= (void (*)()) {uname:#x}" in said[8]


@contextmanager
def _command(place: Path) -> Iterator[subprocess.Popen[str]]:
    """`veil gdb`, standing still."""
    process = subprocess.Popen(
        [*_VEIL, "gdb", "--no-monitor", "--listen", str(place)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A kernel at VMPL 0 cannot be locked down (`make test-kci`).
        env={name: value for name, value in os.environ.items() if name != "VEIL_KCI"},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while line and "gdb is listened for" not in line:
            line = process.stderr.readline()
        assert line == f"gdb is listened for: target remote {place}\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_command_stands_still_before_the_first_instruction(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    with _command(place) as process:
        said = Gdb([f"target remote {place}", "print $rip", "info threads", "kill"]).said()
        assert process.wait(60) == 125
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == "veil: gdb ended the machine"
    assert said[1] == "$1 = (void (*)()) 0x10b000"
    assert "VMPL 0, current" in said[2]
    assert not place.exists()


def test_the_command_can_be_given_up(tmp_path: Path) -> None:
    with _command(tmp_path / "socket") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert not (tmp_path / "socket").exists()
