# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that was taken over writes, on one VCPU, where the host's answers to VeilMon lie, which is on another.

These pages are shared, so nothing keeps it from that. It must neither end VeilMon by it, and with it the log, nor
attestation, without which nobody believes what the log says.
"""

from __future__ import annotations

import contextlib
import struct

import pytest

from tests.e2e.hijack import CODE, RESULT, SHARED, TABLES, VMGEXIT, Hijack
from tests.e2e.log_guest import log_reader
from tests.e2e.snapshots import Resume
from tests.machine_code import assemble
from veil.errors import VeilError
from veil.host import RunState
from veil.snp.layouts import Vmsa

_PAGE = 4096
_REQUEST, _OUT = 0x8040000, 0x8050000
_SECOND_CODE, _SECOND_STACK = CODE + 4 * _PAGE, 0x8028000
_HALT = "1: hlt\njmp 1b"
# 56421: SW_EXITINFO1 of the answer. 56860: the message's authentication tag comes first.
_EXIT_INFO_1 = 0x398


def _on_second_vcpu(kernel: Hijack, code: str) -> None:
    """VCPU 1 runs our code, too, on the first one's page tables."""
    context = kernel.vm.hypervisor.vcpus[1].contexts[3]
    vmsa = context.vmcb.vmsa_pa
    kernel.kernel.write(_SECOND_CODE, assemble(code, _SECOND_CODE))
    registers = {
        Vmsa.rip: _SECOND_CODE, Vmsa.cr3: TABLES, Vmsa.rsp: _SECOND_STACK, Vmsa.rflags: 2, Vmsa.cr4: 0x620,
        Vmsa.cr0: 0x80050033,
    }  # fmt: skip
    for field, value in registers.items():
        kernel.monitor.write_u64(vmsa + field.offset, value)
    kernel.monitor.write_u8(vmsa + Vmsa.cpl.offset, 0)
    kernel.monitor.write(vmsa + Vmsa.cs.offset, struct.pack("<HHIQ", 0x10, 0xA9B, 0xFFFFFFFF, 0))
    kernel.monitor.write(vmsa + Vmsa.ss.offset, struct.pack("<HHIQ", 0x18, 0xC93, 0xFFFFFFFF, 0))
    kernel.monitor.write(vmsa + Vmsa.idtr.offset, bytes(16))
    context.vmcb.v_intr = context.vmcb.event_inj = 0
    kernel.vm.hypervisor.vcpus[1].state = RunState.RUNNABLE


def _call_without_end(kernel: Hijack, *, pending: int) -> None:
    """Run VMPL 0 again and again, asking for a report or for nothing."""
    caa = kernel.veilmon.domains.vcpus[0].kernel.caa
    # 58019, table 11
    request = struct.pack("<QI4xQH6xQI4x", _OUT, _PAGE, _REQUEST + 0x100, 64, _OUT + _PAGE, _PAGE)
    kernel.kernel.write(_REQUEST, request.ljust(0x58, b"\0"))
    kernel.start(f"""
    1:  mov byte ptr [{caa}], {pending}
        mov ecx, 0xc0010130
        mov eax, 0x016
        xor edx, edx
        wrmsr
        mov eax, 1
        shl rax, 32
        mov rcx, {_REQUEST}
        {VMGEXIT}
        mov [{RESULT}], rax
        inc qword ptr [{RESULT + 8}]
        jmp 1b
    """)


@pytest.mark.parametrize("what", ["report", "doorbell"])
def test_users_are_served_afterwards(resume: Resume, what: str) -> None:
    vm = resume(vcpus=2)
    before = log_reader(vm).head().size
    vm.hypervisor.kernel_end.is_outlived = True
    kernel = Hijack(vm)
    parameters = kernel.veilmon.state.parameters
    target = parameters.shared.gpa + _PAGE if what == "report" else parameters.ghcb_gpa + _EXIT_INFO_1
    _call_without_end(kernel, pending=int(what == "report"))
    _on_second_vcpu(kernel, f"1: mov dword ptr [{SHARED + target:#x}], 2\njmp 1b")
    vm.hypervisor.run(until=lambda: kernel.kernel.read_u64(RESULT + 8) >= 20, timeout=60)
    for _ in range(3):
        # What comes of it meanwhile is the kernel's to choose.
        with contextlib.suppress(VeilError):
            log_reader(vm, timeout=3.0).head()
    kernel.start(_HALT)
    _on_second_vcpu(kernel, _HALT)
    assert kernel.veilmon.last_error is None
    assert len(list(log_reader(vm, timeout=30.0).fetch())) >= before > 0
