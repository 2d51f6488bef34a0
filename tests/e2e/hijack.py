# SPDX-License-Identifier: GPL-2.0-or-later
"""A compromised kernel: our machine code at CPL 0 of VMPL 3, in the booted guest's own context.

The harness does what an exploit would: it takes over the kernel's context. The code and its page tables are written
through the view of VMPL 3, so they lie in memory that the kernel may write; only the jump, the registers in the VMSA,
is made by the harness with VMPL 0's rights. From there on the hardware and VeilMon meet nothing but code of VMPL 3.
"""

from __future__ import annotations

import struct

from tests.machine_code import assemble
from veil.cvm import ConfidentialVM
from veil.host import RunResult, RunState
from veil.monitor import VeilMon
from veil.snp import ExitCode, Permission
from veil.snp.layouts import Vmcb, Vmsa

__all__ = ["CODE", "PVALIDATE", "RESULT", "RMPADJUST", "SHARED", "TABLES", "VMGEXIT", "Hijack", "ask_by_msr"]

RMPADJUST = ".byte 0xf3, 0x0f, 0x01, 0xfe"
PVALIDATE = ".byte 0xf2, 0x0f, 0x01, 0xff"
VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9"

#: The first GiB of memory once more, as the host sees it: without the C-bit.
SHARED = 1 << 30

PAGE = 4096
# Free memory of the kernel, whose content it will not miss any more.
TABLES, CODE, _STACK, RESULT, _ARGUMENTS = 0x8000000, 0x8010000, 0x8020000, 0x8030000, 0x8031000
_C_BIT = 1 << 51
_GHCB_MSR = 0xC0010130
# 56421, section 3
_GHCB_FIELDS = {
    "rax": 0x1F8, "rcx": 0x308, "rdx": 0x310, "rbx": 0x318, "code": 0x390, "info1": 0x398, "info2": 0x3A0,
    "scratch": 0x3A8,
}  # fmt: skip


def ask_by_msr(value: int) -> str:
    """Assembler: a request of the GHCB MSR protocol, or of the GHCB page at this GPA."""
    return f"""
        mov ecx, {_GHCB_MSR:#x}
        mov eax, {value & 0xFFFFFFFF:#x}
        mov edx, {value >> 32:#x}
        wrmsr
        {VMGEXIT}
    """


class Hijack:
    """Runs code in place of the kernel on VCPU 0."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self.vm = vm
        self.kernel = vm.machine.view(vmpl=3)
        self.monitor = vm.machine.view(vmpl=0)
        context = vm.hypervisor.vcpus[0].contexts[3]
        self.vmcb: Vmcb = context.vmcb
        self.vmsa_gpa = self.vmcb.vmsa_pa
        self.monitor_vmsa_gpa = vm.hypervisor.vcpus[0].contexts[0].vmcb.vmsa_pa
        # VMSAs of VCPU 0 lie in the monitor's region; its first page is the header.
        self.monitor_gpa = self.monitor_vmsa_gpa & ~0x1FFFFF
        # Tests change single pages here: a host splits the entry when VeilMon first asks for one.
        self.split(TABLES)
        # A locked-down kernel would not execute the code. What the tests ask is what else stands in its way.
        for gpa in range(CODE, _STACK, PAGE):
            self.monitor.rmpadjust(gpa, vmpl=3, permissions=Permission.ALL)
        self._tables()

    def _tables(self) -> None:
        link = 7 | _C_BIT
        self.kernel.write(TABLES, struct.pack("<Q", (TABLES + PAGE) | link).ljust(PAGE, b"\0"))
        directories = struct.pack("<2Q", (TABLES + 2 * PAGE) | link, (TABLES + 3 * PAGE) | link)
        self.kernel.write(TABLES + PAGE, directories.ljust(PAGE, b"\0"))
        for number, mark in enumerate((_C_BIT, 0)):
            leaves = struct.pack("<512Q", *(index << 21 | 0xE7 | mark for index in range(512)))
            self.kernel.write(TABLES + (2 + number) * PAGE, leaves)

    def start(self, code: str) -> None:
        """Put code in place and point the kernel's context at it; interrupts are off."""
        self.kernel.write(CODE, assemble(code, CODE))
        self.kernel.zero(RESULT, PAGE)
        registers = {
            Vmsa.rip: CODE, Vmsa.cr3: TABLES, Vmsa.rsp: _STACK, Vmsa.rflags: 2, Vmsa.cr4: 0x620, Vmsa.cr0: 0x80050033,
        }  # fmt: skip
        for field, value in registers.items():
            self.monitor.write_u64(self.vmsa_gpa + field.offset, value)
        self.monitor.write_u8(self.vmsa_gpa + Vmsa.cpl.offset, 0)
        self.monitor.write(self.vmsa_gpa + Vmsa.cs.offset, struct.pack("<HHIQ", 0x10, 0xA9B, 0xFFFFFFFF, 0))
        self.monitor.write(self.vmsa_gpa + Vmsa.ss.offset, struct.pack("<HHIQ", 0x18, 0xC93, 0xFFFFFFFF, 0))
        # Without an IDT an exception is a triple fault: nothing of the kernel's comes in between.
        self.monitor.write(self.vmsa_gpa + Vmsa.idtr.offset, bytes(16))
        self.vmcb.v_intr = self.vmcb.event_inj = 0
        vcpu = self.vm.hypervisor.vcpus[0]
        if vcpu.state == RunState.HALTED:
            vcpu.state = RunState.RUNNABLE

    def run(self, code: str, *, vmpl: int = 3) -> ExitCode:
        """Run code to its first exit, without a host that resolves anything; `vmpl` 0 is the counter-test."""
        self.start(code)
        self.monitor.write_u8(self.vmsa_gpa + Vmsa.vmpl.offset, vmpl)
        self.vm.machine.vmrun(self.vmcb)
        return ExitCode(self.vmcb.exit_code)

    def result(self) -> int:
        """The first word at RESULT."""
        return self.kernel.read_u64(RESULT)

    def split(self, gpa: int) -> None:
        """The host splits a page's RMP entry of 2 MiB, if it is one."""
        self.vm.machine.host_view().psmash(gpa & -(2 << 20))

    @property
    def veilmon(self) -> VeilMon:
        """The monitor's program, for tests that look into it or switch a check off."""
        program = self.vm.machine.hosted_program(self.monitor_vmsa_gpa)
        assert isinstance(program, VeilMon)
        return program

    def svsm_call(self, protocol: int, call: int, rcx: int = 0, rdx: int = 0, r8: int = 0) -> int:
        """Make an SVSM call by the MSR protocol; VeilMon's answer. The kernel waits in HLT afterwards."""
        caa = self.veilmon.domains.vcpus[0].kernel.caa
        arguments = struct.pack("<4Q", protocol << 32 | call, rcx, rdx, r8)
        self.kernel.write(_ARGUMENTS, arguments)
        self.start(f"""
            mov byte ptr [{caa}], 1
            mov ecx, 0xc0010130
            mov eax, 0x016
            xor edx, edx
            wrmsr
            mov rax, [{_ARGUMENTS}]
            mov rcx, [{_ARGUMENTS + 8}]
            mov rdx, [{_ARGUMENTS + 16}]
            mov r8, [{_ARGUMENTS + 24}]
            {VMGEXIT}
            mov [{RESULT}], rax
            movzx eax, byte ptr [{caa}]
            mov [{RESULT + 8}], rax
            mov qword ptr [{RESULT + 16}], 1
        1:  hlt
            jmp 1b
        """)
        host = self.vm.hypervisor
        assert host.run(until=lambda: self.kernel.read_u64(RESULT + 16) == 1, timeout=60) == RunResult.DONE
        assert self.kernel.read_u64(RESULT + 8) == 0
        return self.result()

    def ask_host_by_msr(self, value: int) -> int:
        """A request of the GHCB MSR protocol, to the host in its run loop; the MSR afterwards."""
        self.start(f"""
            {ask_by_msr(value)}
            rdmsr
            mov [{RESULT}], eax
            mov [{RESULT + 4}], edx
            mov dword ptr [{RESULT + 16}], 1
            jmp $
        """)
        self._until_answered()
        return self.result()

    def ask_host(
        self, event: int, info1: int = 0, info2: int = 0, *, data: bytes = b"", **registers: int
    ) -> tuple[int, int]:
        """A request in the kernel's own GHCB page, to the host in its run loop: SW_EXITINFO1 and 2 of the answer.

        `data` goes into the page's buffer, which is the scratch area unless `scratch` names another.
        """
        ghcb = self.vm.hypervisor.vcpus[0].contexts[3].ghcb
        assert ghcb is not None
        fields = {"code": event, "info1": info1, "info2": info2, "scratch": ghcb + 0x800, **registers}
        page = bytearray(PAGE)
        page[0x800 : 0x800 + len(data)] = data
        bitmap = 0
        for name, value in fields.items():
            struct.pack_into("<Q", page, _GHCB_FIELDS[name], value)
            bitmap |= 1 << _GHCB_FIELDS[name] // 8
        page[0x3F0:0x400] = bitmap.to_bytes(16, "little")
        struct.pack_into("<HI", page, 0xFFA, 2, 0)
        self.kernel.write(ghcb, bytes(page), private=False)
        self.ask_host_by_msr(ghcb)
        return struct.unpack("<2Q", self.kernel.read(ghcb + 0x398, 16, private=False))

    def _until_answered(self) -> None:
        host = self.vm.hypervisor
        assert host.run(until=lambda: self.kernel.read_u64(RESULT + 16) == 1, timeout=60) == RunResult.DONE

    def open_to_kernel(self, gpa: int) -> None:
        """Switch the protection of a page off."""
        self.split(gpa)
        self.monitor.rmpadjust(gpa, vmpl=3, permissions=Permission.ALL)
