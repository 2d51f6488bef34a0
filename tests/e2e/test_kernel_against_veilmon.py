# SPDX-License-Identifier: GPL-2.0-or-later
"""What a compromised kernel tries against VeilMon, and that it would succeed without the protection."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.hijack import CODE, RESULT, RMPADJUST, Hijack
from veil.cvm import ConfidentialVM
from veil.snp import EntryFlag, ExitCode, RmpViolation
from veil.snp.hosted import HOSTED_MAGIC

_VMPL_DENIED = 1 << 36 | 1 << 34 | 1 << 31

Resume = Callable[[], ConfidentialVM]


def test_reading_the_monitors_memory(resume: Resume) -> None:
    kernel = Hijack(resume())
    read = f"mov rax, [{kernel.monitor_gpa}]\nmov [{RESULT}], rax\nhlt"
    assert kernel.run(read) == ExitCode.NPF
    assert kernel.vmcb.exit_info_1 & _VMPL_DENIED == _VMPL_DENIED
    assert kernel.vmcb.exit_info_2 == kernel.monitor_gpa
    assert kernel.result() == 0

    kernel.open_to_kernel(kernel.monitor_gpa)
    assert kernel.run(read) == ExitCode.HLT
    assert kernel.result().to_bytes(8, "little") == HOSTED_MAGIC


def test_writing_the_monitors_memory(resume: Resume) -> None:
    kernel = Hijack(resume())
    write = f"mov qword ptr [{kernel.monitor_gpa}], 0x666\nhlt"
    assert kernel.run(write) == ExitCode.NPF
    assert kernel.vmcb.exit_info_1 & _VMPL_DENIED == _VMPL_DENIED
    assert kernel.monitor.read(kernel.monitor_gpa, 8) == HOSTED_MAGIC

    kernel.open_to_kernel(kernel.monitor_gpa)
    assert kernel.run(write) == ExitCode.HLT
    assert kernel.monitor.read_u64(kernel.monitor_gpa) == 0x666


def test_executing_the_monitors_memory(resume: Resume) -> None:
    kernel = Hijack(resume())
    assert kernel.run(f"mov rax, {kernel.monitor_gpa}\njmp rax") == ExitCode.NPF
    assert kernel.vmcb.exit_info_1 & (1 << 36 | 1 << 4) == 1 << 36 | 1 << 4

    kernel.monitor.write(kernel.monitor_gpa, b"\xf4")
    kernel.open_to_kernel(kernel.monitor_gpa)
    assert kernel.run(f"mov rax, {kernel.monitor_gpa}\njmp rax") == ExitCode.HLT


@pytest.mark.parametrize("which", ["monitor", "own"])
def test_vmsas(resume: Resume, which: str) -> None:
    kernel = Hijack(resume())
    gpa = kernel.monitor_vmsa_gpa if which == "monitor" else kernel.vmsa_gpa
    before = kernel.monitor.read(kernel.monitor_vmsa_gpa, 0x3B8)
    assert kernel.run(f"mov qword ptr [{gpa + 0x178}], 0x666\nhlt") == ExitCode.NPF
    assert kernel.monitor.read(kernel.monitor_vmsa_gpa, 0x3B8) == before

    kernel.open_to_kernel(kernel.monitor_vmsa_gpa)
    if which == "monitor":
        assert kernel.run(f"mov qword ptr [{gpa + 0x178}], 0x666\nhlt") == ExitCode.HLT
        assert kernel.monitor.read_u64(gpa + 0x178) == 0x666


def test_rmpadjust_on_its_own_permissions(resume: Resume) -> None:
    kernel = Hijack(resume())
    # The page must be readable for the translation only; the RMP entry is the monitor's.
    code = f"""
        mov rax, {kernel.monitor_gpa}
        xor ecx, ecx
        mov edx, 0x0f03
        {RMPADJUST}
        mov [{RESULT}], rax
        mov rax, [{kernel.monitor_gpa}]
        hlt
    """
    assert kernel.run(code) == ExitCode.NPF
    assert kernel.result() == 2
    assert kernel.vm.machine.rmp.entry(kernel.monitor_gpa)["perms"][3] == 0

    # The same code in a context of VMPL 0, which the monitor's own VMSA is and the kernel's is not.
    kernel.vm.machine.host_view().psmash(kernel.monitor_gpa)
    assert kernel.run(code, vmpl=0) == ExitCode.HLT
    assert kernel.result() == 0
    assert kernel.vm.machine.rmp.entry(kernel.monitor_gpa)["perms"][3] == 0xF


def test_making_a_vmsa(resume: Resume) -> None:
    kernel = Hijack(resume())
    forged = CODE + 0x8000
    kernel.kernel.write(forged, kernel.monitor.read(kernel.monitor_vmsa_gpa, 4096))
    code = f"mov rax, {forged}\nxor ecx, ecx\nmov edx, 0x10f03\n{RMPADJUST}\nmov [{RESULT}], rax\nhlt"
    assert kernel.run(code) == ExitCode.HLT
    assert kernel.result() == 2
    vmcb = kernel.vm.machine.new_vmcb()
    vmcb.vmsa_pa = forged
    kernel.vm.machine.vmrun(vmcb)
    assert vmcb.exit_code == ExitCode.INVALID

    # The same code at VMPL 0 makes one that the host could run.
    assert kernel.run(code, vmpl=0) == ExitCode.HLT
    assert kernel.result() == 0
    assert kernel.vm.machine.rmp.is_vmsa(forged)


def test_unvalidated_memory(resume: Resume) -> None:
    kernel = Hijack(resume())
    target = CODE + 0x9000
    kernel.monitor.pvalidate(target, validate=False)
    # #VC without an IDT is a triple fault: the read did not happen.
    assert kernel.run(f"mov rax, [{target}]\nmov [{RESULT}], rax\nhlt") == ExitCode.SHUTDOWN
    kernel.monitor.pvalidate(target)
    kernel.kernel.write_u64(target, 5)
    assert kernel.run(f"mov rax, [{target}]\nmov [{RESULT}], rax\nhlt") == ExitCode.HLT
    assert kernel.result() == 5


def _ask_to_invalidate(kernel: Hijack, gpa: int) -> int:
    """Ask VeilMon to PVALIDATE(rescind) a page; its answer."""
    request = CODE + 0xA000
    kernel.kernel.write(request, (1).to_bytes(2, "little") + bytes(6) + gpa.to_bytes(8, "little"))
    return kernel.svsm_call(0, 1, request)


@pytest.mark.parametrize("call", [0, 1, 2, 3], ids=["REMAP_CA", "PVALIDATE", "CREATE_VCPU", "DELETE_VCPU"])
def test_calls_that_point_at_the_monitor(resume: Resume, call: int) -> None:
    kernel = Hijack(resume())
    for gpa in (kernel.monitor_gpa, kernel.monitor_vmsa_gpa):
        before = kernel.vm.machine.rmp.entry(gpa).copy()
        content = kernel.monitor.read(kernel.monitor_gpa, 64)
        assert kernel.svsm_call(0, call, gpa) >= 0x8000_0000
        assert kernel.vm.machine.rmp.entry(gpa) == before
        assert kernel.monitor.read(kernel.monitor_gpa, 64) == content


def test_asking_the_monitor_to_give_protected_pages_away(resume: Resume) -> None:
    for which in range(4):
        kernel = Hijack(resume())
        services = kernel.monitor_gpa + (2 << 20)
        gpa = (kernel.monitor_gpa, services, kernel.monitor_vmsa_gpa, kernel.vmsa_gpa)[which]
        before = kernel.vm.machine.rmp.entry(gpa).copy()
        assert _ask_to_invalidate(kernel, gpa) != 0
        assert kernel.vm.machine.rmp.entry(gpa) == before
        assert before["flags"] & EntryFlag.VALIDATED
    # The same call for a page of the kernel's own is served.
    kernel = Hijack(resume())
    own = CODE + 0xB000
    assert _ask_to_invalidate(kernel, own) == 0
    assert not kernel.vm.machine.rmp.entry(own)["flags"] & EntryFlag.VALIDATED


def test_the_host_sees_ciphertext_and_cannot_write(resume: Resume) -> None:
    vm = resume()
    host, kernel = vm.machine.host_view(), Hijack(vm)
    assert host.read(kernel.monitor_gpa, 8) != HOSTED_MAGIC
    with pytest.raises(RmpViolation):
        host.write(kernel.monitor_gpa, b"x")
    with pytest.raises(RmpViolation):
        host.write_u64(kernel.vmsa_gpa + 0x178, 0)
    # A page that the kernel shared is the host's to read and write.
    shared = CODE + 0xC000
    kernel.monitor.pvalidate(shared, validate=False)
    host.rmpupdate(shared, assigned=False)
    host.write(shared, b"plain")
    assert host.read(shared, 5) == b"plain"
