# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's gdb at a monitor written in machine code, and at the kernel below it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.debugger.gdb import Gdb
from veil.bare_metal import CODE, FREE, BareGuest, ExitCode, Permission, assemble

KERNEL = 0x20000
SECRET = FREE + 0x1000
VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9"


def _run_vmpl(vmpl: int) -> str:
    """A request by the GHCB MSR."""
    return f"mov ecx, 0xC0010130\nmov eax, 0x16\nmov edx, {vmpl}\nwrmsr\n{VMGEXIT}\n"


_MONITOR_SOURCE = f"""
    mov rbx, 0x1111
serve:
{_run_vmpl(3)}
answered:
    inc rbx
    cmp rbx, 0x1115
    jb serve
    hlt
"""
_KERNEL_SOURCE = f"""
    mov rdi, {FREE}
    mov rbx, 0x3333
again:
    inc qword ptr [rdi]
{_run_vmpl(0)}
    jmp again
"""


def two_levels() -> BareGuest:
    guest = BareGuest(assemble(_MONITOR_SOURCE))
    guest.put(KERNEL, assemble(_KERNEL_SOURCE, KERNEL))
    guest.put(SECRET, b"secret! ")
    guest.permit(0, 3, pages=512)
    guest.permit(SECRET, 3, Permission(0))
    guest.add_context(3, rip=KERNEL)
    return guest


def _symbols(folder: Path, text: str, origin: int) -> Path:
    """An ELF file with the labels of a program, as whoever builds a monitor has one."""
    unit, program = folder / f"{origin:x}.o", folder / f"{origin:x}.elf"
    source = f".intel_syntax noprefix\n.globl _start\n_start:\n{text}\n"
    subprocess.run(["as", "--64", "-o", unit, "-"], input=source.encode(), check=True)
    subprocess.run(["ld", "-Ttext", hex(origin), "-o", program, unit], check=True)
    return program


def _debug(guest: BareGuest, tmp_path: Path, *commands: str) -> list[str]:
    with guest.debugger(str(tmp_path / "socket"), say=lambda _: None) as debugger:
        gdb = Gdb([f"target remote {debugger.address}", *commands])
        exit = guest.run(seconds=200)
        said = gdb.said()
    assert exit.code == ExitCode.HLT
    # Left alone it does what it would have done: four calls.
    assert guest.context(0).registers.rbx == 0x1115
    assert guest.view(0).read_u64(FREE) == 4
    return said[1:]


def test_breaks_in_the_monitor_and_in_the_kernel(tmp_path: Path) -> None:
    with two_levels() as guest:
        monitor, kernel = (
            _symbols(tmp_path, *program) for program in ((_MONITOR_SOURCE, CODE), (_KERNEL_SOURCE, KERNEL))
        )
        said = _debug(
            guest, tmp_path, f"file {monitor}", f"add-symbol-file {kernel}", "break again", "continue",
            "info threads", "print/x $rbx", "break answered", "continue", "print/x $rbx", "thread 2", "print/x $rbx",
            "delete", "detach",
        )  # fmt: skip
        assert "hit Breakpoint 1" in said[3]
        assert "again ()" in said[3]
        assert '* 2    Thread 4 "VMPL 3" (VCPU 0, VMPL 3, current)' in said[4]
        assert '  1    Thread 1 "VMPL 0" (VCPU 0, VMPL 0) ' in said[4]
        assert said[5] == "$1 = 0x3333"
        assert "hit Breakpoint 2" in said[7]
        assert "answered ()" in said[7]
        assert said[8] == "$2 = 0x1111"
        assert said[10] == "$3 = 0x3333", "the kernel's registers, out of its VMSA"
        assert "detached" in said[12]


def test_steps_over_a_switch_of_vmpl(tmp_path: Path) -> None:
    with two_levels() as guest:
        code = assemble(_MONITOR_SOURCE)
        vmgexit = CODE + code.index(b"\xf3\x0f\x01\xd9")
        said = _debug(
            guest, tmp_path, f"break *{vmgexit:#x}", "continue", "delete", "stepi", "thread", "stepi", "print/x $rdi",
            "stepi", "stepi", "stepi", "stepi", "stepi", "stepi", "stepi", "thread", "detach",
        )  # fmt: skip
        assert f"0x{KERNEL:016x} in" in said[3]
        assert "Current thread is 2 (Thread 4)" in said[4]
        assert said[6] == f"$1 = {FREE:#x}"
        assert f"0x{vmgexit + 4:016x} in" in said[13], "and back, behind the monitor's VMGEXIT"
        assert "Current thread is 1" in said[14]


def test_memory_is_that_of_the_threads_vmpl(tmp_path: Path) -> None:
    with two_levels() as guest:
        said = _debug(
            guest, tmp_path, f"break *{KERNEL:#x}", "continue", f"x/s {SECRET}", f"set *(long *) {SECRET} = 1",
            f"x/1gx {FREE}", f"x/1gx {1 << 40}", f"set *(long *) {FREE} = 7", f"x/1gx {FREE}",
            f"set *(long *) {FREE} = 0", "thread 1", f"x/s {SECRET}", "monitor rmp " + hex(SECRET),
            f"x/1gx {FREE + (1 << 30)}", "delete", "detach",
        )  # fmt: skip
        assert "Cannot access memory" in said[2]
        assert "Cannot access memory" in said[3]
        assert said[4].endswith("0x0000000000000000")
        assert "Cannot access memory" in said[5]
        assert said[7].endswith("0x0000000000000007")
        assert "secret! " in said[10]
        assert said[11].split() == [
            f"{SECRET:#x}:", "assigned,", "validated", "VMPL", "0:", "rwus", "VMPL", "1:", "----", "VMPL", "2:", "----",
            "VMPL", "3:", "----",
        ]  # fmt: skip
        assert "Cannot access memory" in said[12], "the page is private, this address is shared"
        assert guest.view(0).read(SECRET, 8) == b"secret! "


def test_watchpoints(tmp_path: Path) -> None:
    with two_levels() as guest:
        said = _debug(
            guest, tmp_path, f"break *{KERNEL:#x}", "continue", "delete", f"watch *(long *) {FREE}", "continue",
            "continue", "delete", f"rwatch *(long *) {FREE}", "continue", "delete", "detach",
        )  # fmt: skip
        assert said[4].splitlines()[-3:-1] == ["Old value = 0", "New value = 1"]
        assert said[5].splitlines()[-3:-1] == ["Old value = 1", "New value = 2"]
        assert "Value = 3" in said[8]


def test_registers_can_be_changed(tmp_path: Path) -> None:
    with two_levels() as guest:
        said = _debug(
            guest, tmp_path, f"break *{KERNEL:#x}", "continue", "delete", "set $xmm3.uint128 = 0x1234",
            "set $rsi = -2", "set $fs_base = 0x5000", "print/x $xmm3.uint128", "print/x $rsi", "print $efer", "detach",
        )  # fmt: skip
        assert said[6:9] == ["$1 = 0x1234", "$2 = 0xfffffffffffffffe", "$3 = 7425"]
        registers = guest.context(3).registers
        assert (registers.rsi, registers.fs.base) == ((1 << 64) - 2, 0x5000)
        assert bytes(registers.fpreg_xmm[48:50]) == b"\x34\x12"


def test_what_monitor_tells(tmp_path: Path) -> None:
    with two_levels() as guest:
        said = _debug(
            guest, tmp_path, f"break *{KERNEL + 7:#x}", "continue", "delete", "monitor switches", "monitor contexts",
            "monitor vmsa", f"monitor translate {FREE + (1 << 30):#x}", "monitor rmp 0x99999999999", "monitor rmp",
            "monitor offset", "monitor nonsense", "detach",
        )  # fmt: skip
        assert said[3].splitlines() == ["VCPU 0: VMPL 0 left by VMGEXIT"]
        assert said[4].splitlines()[0] == "1: VCPU 0, VMPL 0, VMSA 0x9000, machine code"
        assert "VCPU 0, VMPL 3, CPL 0: VMSA at 0xc000" in said[5]
        assert said[6] == f"{FREE + (1 << 30):#x} is GPA {FREE:#x}, shared"
        assert "outside guest memory" in said[7]
        assert said[8] == "usage: monitor rmp GPA"
        assert said[9] == "this context maps no Linux kernel"
        assert "monitor commands:" in said[10]


def test_a_triple_fault_stands_still_first(tmp_path: Path) -> None:
    with (
        BareGuest(assemble("mov rax, 77\nud2")) as guest,
        guest.debugger(str(tmp_path / "socket"), say=lambda _: None) as debugger,
    ):
        gdb = Gdb([f"target remote {debugger.address}", "continue", "print $rax", "x/i $rip", "detach"])
        assert guest.run(seconds=200).code == ExitCode.SHUTDOWN
        said = gdb.said()
        assert "SIGSEGV" in said[1]
        assert said[2] == "$1 = 77"
        assert "ud2" in said[3]
