# SPDX-License-Identifier: GPL-2.0-or-later
"""Contexts of VMPL 2 on the bare machine under the real host: a kernel of a few instructions, which enters them.

Each has code, stack, IDT and its VMSA in pages of its own, open to VMPL 2 for user code only. Its gates lead to ring 3:
every event calls `handler` on a stack of its own, with the vector pushed, and below it what the processor pushed.
"""

from __future__ import annotations

import struct
from typing import Any

from tests.host.fakes import FakePlatform
from tests.machine_code import assemble
from tests.small_guest import PAGE, TABLES, SmallGuest
from veil.formats.ghcb import run_context_request
from veil.host import Hypervisor, RunResult, RunState
from veil.snp import Permission
from veil.snp.layouts import SevFeatures, Vmsa, VmsaSegment

SNP, RESTRICTED = SevFeatures.SNP, SevFeatures.RESTRICTED_INJECTION

__all__ = ["RESTRICTED", "SHARED_DATA", "SNP", "VMGEXIT", "EnclaveGuest", "enter", "enter_request"]

#: a page that kernel and enclaves read and write
SHARED_DATA = 0x30000
VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9\n"

_ENCLAVES, _SIZE = 0x200000, 0x8000
_CODE, _STACK, _IDT, _SYSTEM, _STUBS, _VMSA = (page * PAGE for page in range(6))
_USER_RIGHTS = Permission.R | Permission.W | Permission.UX
#: events for which the processor pushes no error code
_NO_ERROR_CODE = [vector for vector in range(256) if vector not in (8, 10, 11, 12, 13, 14, 17, 29)]


def enter_request(value: int) -> str:
    """Code of VMPL 3: this request in the GHCB MSR, VMGEXIT, and the answer in EDX:EAX."""
    return (
        f"mov ecx, 0xc0010130\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nwrmsr\n{VMGEXIT}"
        "mov ecx, 0xc0010130\nrdmsr\n"
    )


def enter(number: int) -> str:
    """Code of VMPL 3 that runs an enclave."""
    return enter_request(run_context_request(EnclaveGuest.vmsa_of(number)))


class EnclaveGuest(SmallGuest):
    """One kernel (VMPL 3, CPL 0) on each VCPU, and enclaves that the host knows."""

    #: the host leaves plain domain switches to the machine
    switches_by_machine = True

    def __init__(self, kernels: list[str] | str, *enclaves: str, **options: Any) -> None:
        """Intel syntax. An enclave's code may define `handler`; without it every event is an endless loop."""
        kernels = [kernels] if isinstance(kernels, str) else kernels
        super().__init__("cli\n" + kernels[0] + "\nhlt")
        self.platform = FakePlatform()
        self.hypervisor = Hypervisor(self.machine, self.platform, len(kernels), monitor=True, **options)
        self.hypervisor.switches_by_machine = self.switches_by_machine
        self.permit(SHARED_DATA, Permission.RW, 2)
        for gpa in TABLES:
            self.permit(gpa, Permission.RW, 2)
        for index, code in enumerate(kernels):
            vcpu = self.hypervisor.vcpus[index]
            gpa = self.vmcb.vmsa_pa
            if index:
                start = 0x80000 + index * 0x4000
                self.put("cli\n" + code + "\nhlt", start)
                gpa = self.make_context(start + 0x3000, vmpl=3, rip=start).vmsa_pa
            self.top.write_u64(gpa + Vmsa.rflags.offset, 2)
            vcpu.set_vmsa(3, gpa)
            vcpu.start(3)
        for number, code in enumerate(enclaves):
            self.make_enclave(number, code)

    @staticmethod
    def vmsa_of(number: int) -> int:
        """The VMSA of an enclave."""
        return _ENCLAVES + number * _SIZE + _VMSA

    @staticmethod
    def code_of(number: int) -> int:
        """Where its code begins."""
        return _ENCLAVES + number * _SIZE + _CODE

    def make_enclave(self, number: int, code: str, *, register: bool = True, **registers: int) -> None:
        """A context of VMPL 2, CPL 3, without SYSCALL and without supervisor code."""
        base = _ENCLAVES + number * _SIZE
        if "handler:" not in code:
            code += "\nhandler: jmp handler"
        self.top.write(base + _CODE, assemble(code + "\n.globl handler\n.org 0xff8\n.quad handler", base + _CODE))
        handler = self.top.read_u64(base + _CODE + 0xFF8)
        stubs = "".join(
            f".balign 16\n{'push 0' if vector in _NO_ERROR_CODE else ''}\npush {vector}\njmp {handler}\n"
            for vector in range(256)
        )
        self.top.write(base + _STUBS, assemble(stubs, base + _STUBS))
        for vector in range(256):
            stub = base + _STUBS + 16 * vector
            gate = struct.pack("<HHBBHII", stub & 0xFFFF, 0x23, 1, 0xEE, stub >> 16 & 0xFFFF, 0, 0)
            self.top.write(base + _IDT + 16 * vector, gate)
        system = base + _SYSTEM
        gdt = struct.pack("<5Q", 0, 0, 0, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
        self.top.write(system, gdt)
        self.top.write_u64(system + 0x100 + 0x24, base + _STACK + 0x800)  # IST 1
        values: dict[str, Any] = {
            "efer": 0x1D00,
            "sev_features": SNP | RESTRICTED,
            "rsp": base + _STACK + PAGE - 64,
            **registers,
        }
        self.make_context(base + _VMSA, vmpl=2, cpl=3, rip=base + _CODE)
        vmsa = Vmsa.from_buffer_copy(self.top.read(base + _VMSA, PAGE))
        vmsa.gdtr, vmsa.idtr = VmsaSegment(0, 0, 0x27, system), VmsaSegment(0, 0, 0xFFF, base + _IDT)
        vmsa.tr = VmsaSegment(0x28, 0x8B, 0x67, system + 0x100)
        for name, value in values.items():
            setattr(vmsa, name, value)
        self.top.write(base + _VMSA, bytes(vmsa))
        for page in (_CODE, _STACK, _IDT, _SYSTEM, _STUBS):
            self.permit(base + page, Permission.NONE, 3)
            self.permit(base + page, _USER_RIGHTS, 2)
        if register:
            self.hypervisor.enclaves.add(base + _VMSA)

    def registers(self, number: int) -> Vmsa:
        """An enclave's."""
        return self.vmsa(self.vmsa_of(number))

    def go(self, seconds: float = 10) -> None:
        """Run until VCPU 0's kernel halts."""
        first = self.hypervisor.vcpus[0]
        result = self.hypervisor.run(lambda: first.state == RunState.HALTED, timeout=seconds)
        assert result is RunResult.DONE, "the kernel of VCPU 0 did not come to its end"

    def resume_kernel(self) -> None:
        """VCPU 0's kernel goes on behind its HLT."""
        self.hypervisor.vcpus[0].state = RunState.RUNNABLE

    def data(self, number: int) -> int:
        """One of the numbers in SHARED_DATA."""
        return self.top.read_u64(SHARED_DATA + 8 * number)
