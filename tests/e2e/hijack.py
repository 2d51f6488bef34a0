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
from veil.snp import ExitCode, Permission
from veil.snp.layouts import Vmcb, Vmsa

__all__ = ["CODE", "RESULT", "SHARED", "Hijack"]

#: The first GiB of memory once more, as the host sees it: without the C-bit.
SHARED = 1 << 30

PAGE = 4096
# Free memory of the kernel's, whose content it will not miss any more.
_TABLES, CODE, _STACK, RESULT = 0x8000000, 0x8010000, 0x8020000, 0x8030000
_C_BIT = 1 << 51


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
        vm.machine.host_view().psmash(_TABLES)
        self._tables()

    def _tables(self) -> None:
        link = 7 | _C_BIT
        self.kernel.write(_TABLES, struct.pack("<Q", (_TABLES + PAGE) | link).ljust(PAGE, b"\0"))
        directories = struct.pack("<2Q", (_TABLES + 2 * PAGE) | link, (_TABLES + 3 * PAGE) | link)
        self.kernel.write(_TABLES + PAGE, directories.ljust(PAGE, b"\0"))
        for number, mark in enumerate((_C_BIT, 0)):
            leaves = struct.pack("<512Q", *(index << 21 | 0xE7 | mark for index in range(512)))
            self.kernel.write(_TABLES + (2 + number) * PAGE, leaves)

    def start(self, code: str) -> None:
        """Put code in place and point the kernel's context at it; interrupts are off."""
        self.kernel.write(CODE, assemble(code, CODE))
        self.kernel.zero(RESULT, PAGE)
        registers = {
            Vmsa.rip: CODE, Vmsa.cr3: _TABLES, Vmsa.rsp: _STACK, Vmsa.rflags: 2, Vmsa.cr4: 0x620, Vmsa.cr0: 0x80050033,
        }  # fmt: skip
        for field, value in registers.items():
            self.monitor.write_u64(self.vmsa_gpa + field.offset, value)
        self.monitor.write_u8(self.vmsa_gpa + Vmsa.cpl.offset, 0)
        self.monitor.write(self.vmsa_gpa + Vmsa.cs.offset, struct.pack("<HHIQ", 0x10, 0xA9B, 0xFFFFFFFF, 0))
        self.monitor.write(self.vmsa_gpa + Vmsa.ss.offset, struct.pack("<HHIQ", 0x18, 0xC93, 0xFFFFFFFF, 0))
        # Without an IDT an exception is a triple fault: nothing of the kernel's comes in between.
        self.monitor.write(self.vmsa_gpa + Vmsa.idtr.offset, bytes(16))
        self.vmcb.v_intr = self.vmcb.event_inj = 0

    def run(self, code: str, *, vmpl: int = 3) -> ExitCode:
        """Run code to its first exit, without a host that mends anything; `vmpl` 0 is the counter-test."""
        self.start(code)
        self.monitor.write_u8(self.vmsa_gpa + Vmsa.vmpl.offset, vmpl)
        self.vm.machine.vmrun(self.vmcb)
        return ExitCode(self.vmcb.exit_code)

    def result(self) -> int:
        """The first word at RESULT."""
        return self.kernel.read_u64(RESULT)

    def open_to_kernel(self, gpa: int) -> None:
        """Switch the protection of a page off."""
        self.monitor.rmpadjust(gpa, vmpl=3, permissions=Permission.ALL)
