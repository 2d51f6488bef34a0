# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel can try on contexts of VMPL 2: its code at VMPL 3, the real host, and no protection."""

from __future__ import annotations

import pytest

from tests.enclave_guest import SHARED_DATA, VMGEXIT, EnclaveGuest, enter, enter_request
from tests.small_guest import FREE, PAGE, VMSA
from veil.formats.ghcb import RUN_VMPL_REFUSED, run_context_request
from veil.host import Hypervisor
from veil.host.vcpu import Context, Vcpu
from veil.snp import ExitCode, Permission, RmpResult
from veil.snp.layouts import Vmcb, Vmsa

_DONE = 0x17
_RMPADJUST = ".byte 0xf3, 0x0f, 0x01, 0xfe"
_VMPL_DENIED = 1 << 36
#: In the enclave's code, where it goes by itself only when it is asked for something else.
_DOOR = 0x100
_ON_ITS_STACK, _ON_THE_KERNELS, _BY_THE_DOOR = 0x111, 0x222, 0x666
#: a stack of the kernel's choice, which the enclave can read
_OTHER_STACK = SHARED_DATA + 0x800
#: It takes a word from its stack; then an exception.
_ENCLAVE = f"""
    pop rax
    mov [{SHARED_DATA}], rax
    {VMGEXIT}
    ud2
    .org {_DOOR}
    mov qword ptr [{SHARED_DATA}], {_BY_THE_DOOR}
    {VMGEXIT}
handler:
    mov [{SHARED_DATA + 8}], rsp
    mov qword ptr [{SHARED_DATA}], 1
    {VMGEXIT}
"""


def kernel_runs(guest: EnclaveGuest, code: str) -> ExitCode:
    """VCPU 0's kernel, to its first exit."""
    guest.put(f"cli\n{code}\nhlt", FREE)
    guest.top.write_u64(VMSA + Vmsa.rip.offset, FREE)
    return guest.run(guest.hypervisor.vcpus[0].contexts[3].vmcb)


def kernel_enters(guest: EnclaveGuest, request: int | None = None) -> int:
    """Under the host; the answer."""
    code = enter(0) if request is None else enter_request(request)
    guest.put(f"cli\n{code}shl rdx, 32\nor rax, rdx\nmov [{SHARED_DATA + 64}], rax\nhlt", FREE)
    guest.top.write_u64(VMSA + Vmsa.rip.offset, FREE)
    guest.resume_kernel()
    guest.go()
    return guest.data(8)


def open_to_kernel(guest: EnclaveGuest, gpa: int, *, is_open: bool) -> None:
    """A page of the enclave's, its VMSA too, which stays one."""
    page = gpa & -PAGE
    rights = Permission.ALL if is_open else Permission.NONE
    is_vmsa = page == guest.vmsa_of(0)
    assert guest.top.rmpadjust(page, vmpl=3, permissions=rights, vmsa=is_vmsa) == RmpResult.SUCCESS


def places(guest: EnclaveGuest) -> dict[str, tuple[int, int]]:
    """What leads an enclave elsewhere -> (where it is, what the kernel puts there)."""
    registers, vmsa = guest.registers(0), guest.vmsa_of(0)
    door = guest.code_of(0) + _DOOR
    gate = registers.idtr.base + 6 * 16
    return {
        "entry": (vmsa + Vmsa.rip.offset, door),
        "stack": (vmsa + Vmsa.rsp.offset, _OTHER_STACK),
        # the low 16 bits of its target; what is behind them stays as it is
        "gate": (gate, guest.top.read_u64(gate) & ~0xFFFF | door & 0xFFFF),
        "interrupt stack": (registers.tr.base + 0x24, _OTHER_STACK),
    }


@pytest.mark.parametrize("protected", [True, False])
@pytest.mark.parametrize("what", ["entry", "stack", "gate", "interrupt stack"])
def test_another_entry_and_another_stack(what: str, protected: bool) -> None:
    """The kernel writes where the enclave, or its next exception, begins; then it enters."""
    with EnclaveGuest("nop", _ENCLAVE) as guest:
        guest.top.write_u64(guest.registers(0).rsp, _ON_ITS_STACK)
        guest.top.write_u64(_OTHER_STACK, _ON_THE_KERNELS)
        place, value = places(guest)[what]
        before = guest.top.read_u64(place)
        open_to_kernel(guest, place, is_open=not protected)
        code = kernel_runs(guest, f"mov rax, {value}\nmov [{place}], rax")
        if protected:
            vmcb = guest.hypervisor.vcpus[0].contexts[3].vmcb
            assert code == ExitCode.NPF
            assert vmcb.exit_info_1 & _VMPL_DENIED
            assert vmcb.exit_info_2 & -PAGE == place & -PAGE
        assert guest.top.read_u64(place) == (before if protected else value)
        assert kernel_enters(guest) == _DONE
        if what in ("entry", "stack"):
            steered = {"entry": _BY_THE_DOOR, "stack": _ON_THE_KERNELS}[what]
            assert guest.data(0) == (_ON_ITS_STACK if protected else steered)
            return
        own = guest.top.read_u64(guest.registers(0).tr.base + 0x24) if protected else before
        assert kernel_enters(guest) == _DONE
        if what == "gate":
            assert guest.data(0) == (1 if protected else _BY_THE_DOOR)
        else:
            stack = own if protected else _OTHER_STACK
            assert stack - PAGE < guest.data(1) < stack


def test_a_context_of_the_kernels_own_making() -> None:
    """VMPL 2, the enclave's tables, and an entry of the kernel's choice: nobody runs it but a host that may, if VMPL 0
    had made it one."""
    secret, data = 0x1234_5678_9ABC, 0x140000
    leak = f".org {_DOOR}\nmov rax, [{data}]\nmov [{SHARED_DATA}], rax\n{VMGEXIT}"
    with EnclaveGuest("nop", f"1: {VMGEXIT}jmp 1b\n{leak}") as guest:
        guest.permit(data, Permission.NONE, 3)
        guest.permit(data, Permission.RW, 2)
        guest.top.write_u64(data, secret)
        vmsa, page = guest.registers(0), FREE + 4 * PAGE
        vmsa.rip = guest.code_of(0) + _DOOR
        source = page + PAGE
        guest.top.write(source, bytes(vmsa))
        copy = f"mov rsi, {source}\nmov rdi, {page}\nmov ecx, {PAGE}\nrep movsb"
        assert kernel_runs(guest, copy) == ExitCode.HLT
        assert guest.vmsa(page).vmpl == 2
        # RMPADJUST cannot make it one: RDX has the VMSA bit and a level.
        adjust = f"mov rax, {page}\nxor ecx, ecx\nmov edx, 0x10002\n{_RMPADJUST}\nmov [{SHARED_DATA + 72}], rax"
        assert kernel_runs(guest, adjust) == ExitCode.HLT
        assert guest.data(9) == RmpResult.FAIL_PERMISSION
        request = run_context_request(page)
        assert kernel_enters(guest, request) == RUN_VMPL_REFUSED
        # A host that obeys all the same.
        guest.hypervisor.enclaves.add(page)
        assert guest.run(Vmcb(vmsa_pa=page)) == ExitCode.INVALID
        assert kernel_enters(guest, request) == RUN_VMPL_REFUSED
        assert guest.data(0) == 0
        assert guest.top.rmpadjust(page, vmpl=2, permissions=Permission.NONE, vmsa=True) == RmpResult.SUCCESS
        assert kernel_enters(guest, request) == _DONE
        assert guest.data(0) == secret


def test_one_context_on_two_vcpus_of_a_host_that_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test of `test_enclaves.py`: the second kernel goes on with what the first has begun."""

    def enter_enclave(host: Hypervisor, vcpu: Vcpu, context: Context, vmsa: int) -> bool:
        vcpu.current = host.enclaves.get(vmsa)
        return True

    monkeypatch.setattr(Hypervisor, "enter_enclave", enter_enclave)
    monkeypatch.setattr(EnclaveGuest, "switches_by_machine", False)
    enclave = f"mov qword ptr [{SHARED_DATA}], 1\n1: jmp 1b"
    second = f"1: cmp qword ptr [{SHARED_DATA}], 0\nje 1b\n{enter(0)}"
    with EnclaveGuest([enter(0), second], enclave) as guest:
        vcpus = guest.hypervisor.vcpus
        guest.hypervisor.run(lambda: vcpus[1].vmpl == 2, timeout=10)
        assert vcpus[0].current is vcpus[1].current is guest.hypervisor.enclaves.get(guest.vmsa_of(0))
