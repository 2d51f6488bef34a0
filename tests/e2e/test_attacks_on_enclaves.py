# SPDX-License-Identifier: GPL-2.0-or-later
"""What a compromised kernel tries against a running enclave, and that it would succeed without the protection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.enclave_images import DATA, PRINT, call_window, enclave_image
from tests.e2e.hijack import PVALIDATE, RESULT, RMPADJUST, Hijack
from tests.e2e.snapshots import Resume
from tests.e2e.test_enclaves import ENCLAVES
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.ghcb import run_context_request
from veil.formats.page_owners import Owner
from veil.services.enc.enclave import Enclave
from veil.services.enc.service import EncService
from veil.services.program import ServiceDomain
from veil.snp import ExitCode
from veil.snp.layouts import Vmsa

PAGE = 4096
SECRET = 0x1234_5678_9ABC_DEF0
_VMPL_DENIED = 1 << 36 | 1 << 34 | 1 << 31
#: It has a secret in its memory and in a register, says that it runs, and waits.
WAITS = f"""
    mov r13, {SECRET}
    mov r14, {DATA}
    mov [r14], r13
    {PRINT}
    lea rax, [rbx + 0x1000]
    mov qword ptr [rax], 1000
    mov qword ptr [rax + 8], 0
8:  mov qword ptr [rbx + 8], 35
    lea rax, [rbx + 0x1000]
    mov [rbx + 16], rax
    mov qword ptr [rbx + 24], 0
    {call_window(1)}
    jmp 8b
"""


@dataclass
class Shielded:
    """A guest in which an enclave waits, and what the machine's owner knows of it."""

    vm: ConfidentialVM
    enclave: Enclave

    def page(self, va: int) -> int:
        """Where a page of it is."""
        found = self.enclave.tables.lookup(va)
        assert found is not None
        return found[0]


@pytest.fixture
def shielded(resume: Resume, tmp_path: Path) -> Shielded:
    vm = resume(services=ENCLAVES)
    image = tmp_path / "waits.enclave"
    image.write_bytes(enclave_image(WAITS))
    vm.copy_in(image, image_place(image))
    start = f"setsid {' '.join(enclave_command(image, []))} > /tmp/out 2>&1 &"
    wait = "for i in $(seq 100); do grep -q hello /tmp/out && exit 0; sleep 0.1; done; cat /tmp/out; exit 1"
    result = vm.run(["sh", "-c", f"{start} {wait}"])
    assert result.exit_status == 0, result.stdout
    services = vm.machine.hosted_program(vm.hypervisor.vcpus[0].contexts[1].vmcb.vmsa_pa)
    assert isinstance(services, ServiceDomain)
    (enc,) = (service for service in services.services if isinstance(service, EncService))
    (enclave,) = enc._enclaves.values()
    return Shielded(vm, enclave)


def test_reading_its_memory(shielded: Shielded) -> None:
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    read = f"mov rax, [{page}]\nmov [{RESULT}], rax\nhlt"
    assert kernel.run(read) == ExitCode.NPF
    assert kernel.vmcb.exit_info_1 & _VMPL_DENIED == _VMPL_DENIED
    assert kernel.vmcb.exit_info_2 == page
    assert kernel.result() == 0

    kernel.open_to_kernel(page)
    assert kernel.run(read) == ExitCode.HLT
    assert kernel.result() == SECRET


def test_writing_its_memory(shielded: Shielded) -> None:
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    write = f"mov qword ptr [{page}], 0x666\nhlt"
    assert kernel.run(write) == ExitCode.NPF
    assert kernel.monitor.read_u64(page) == SECRET

    kernel.open_to_kernel(page)
    assert kernel.run(write) == ExitCode.HLT
    assert kernel.monitor.read_u64(page) == 0x666


def test_changing_its_page_tables(shielded: Shielded) -> None:
    """The root's entry of the runtime's part: gone, or leading to tables of the kernel's."""
    kernel, entry = Hijack(shielded.vm), shielded.enclave.tables.root + (DATA >> 39) * 8
    before = kernel.monitor.read_u64(entry)
    assert before & 1
    write = f"mov qword ptr [{entry}], 0\nhlt"
    assert kernel.run(write) == ExitCode.NPF
    assert kernel.monitor.read_u64(entry) == before

    kernel.open_to_kernel(entry & -PAGE)
    assert kernel.run(write) == ExitCode.HLT
    assert kernel.monitor.read_u64(entry) == 0


@pytest.mark.parametrize("register", ["r13", "rip", "rsp", "cr3"])
def test_its_registers(shielded: Shielded, register: str) -> None:
    """Read, and changed: to enter it at another address, with another stack, or on other page tables."""
    kernel, (gpa,) = Hijack(shielded.vm), shielded.enclave.contexts
    place = gpa + getattr(Vmsa, register).offset
    before = kernel.monitor.read_u64(place)
    assert register != "r13" or before == SECRET
    read, write = f"mov rax, [{place}]\nmov [{RESULT}], rax\nhlt", f"mov qword ptr [{place}], 0x666\nhlt"
    assert kernel.run(read) == ExitCode.NPF
    assert kernel.result() == 0
    assert kernel.run(write) == ExitCode.NPF
    assert kernel.monitor.read_u64(place) == before

    kernel.open_to_kernel(gpa)
    assert kernel.run(read) == ExitCode.HLT
    assert kernel.result() == before
    assert kernel.run(write) == ExitCode.HLT
    assert kernel.monitor.read_u64(place) == 0x666


def test_executing_it(shielded: Shielded) -> None:
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    run = f"mov rax, {page}\njmp rax"
    assert kernel.run(run) == ExitCode.NPF
    kernel.monitor.write(page, b"\xf4")
    kernel.open_to_kernel(page)
    assert kernel.run(run) == ExitCode.HLT


@pytest.mark.parametrize(
    ("instruction", "registers"),
    [
        (RMPADJUST, "xor ecx, ecx\nmov edx, 0x0f03"),
        (PVALIDATE, "xor ecx, ecx\nxor edx, edx"),
    ],
    ids=["RMPADJUST", "PVALIDATE"],
)
def test_instructions_of_vmpl_0(shielded: Shielded, instruction: str, registers: str) -> None:
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    code = f"mov rax, {page}\n{registers}\n{instruction}\nmov rax, [{page}]\nmov [{RESULT}], rax\nhlt"
    assert kernel.run(code) != ExitCode.HLT
    assert kernel.result() == 0


@pytest.mark.parametrize("what", ["memory", "tables", "registers", "window"])
def test_calls_about_its_pages(shielded: Shielded, what: str) -> None:
    """VeilMon is asked to take the page back, to make it a VCPU of the kernel's, and to pass arguments there."""
    kernel, enclave = Hijack(shielded.vm), shielded.enclave
    page = {
        "memory": shielded.page(DATA), "tables": enclave.tables.root, "registers": enclave.contexts[0],
        "window": enclave.windows[0][0],
    }[what]  # fmt: skip
    owner = kernel.veilmon.book.owner(page)
    assert owner in (Owner.ENCLAVE, Owner.ENCLAVE_VMSA, Owner.ENCLAVE_WINDOW)
    before = kernel.monitor.read(page, PAGE)
    calls: list[Callable[[], int]] = [
        lambda: kernel.svsm_call(0, 0, page),
        lambda: kernel.svsm_call(0, 2, page, 0x8040000, 0),
        lambda: kernel.svsm_call(0, 3, page),
        lambda: kernel.svsm_call(16, 0, page, 1),
    ]
    assert all(call() != 0 for call in calls)
    assert kernel.veilmon.book.owner(page) is owner
    assert kernel.monitor.read(page, PAGE) == before


def test_other_contexts_are_not_run(shielded: Shielded) -> None:
    """The host is asked to run a page that VeilMon did not seal: one of the enclave's own, one of the kernel's."""
    kernel = Hijack(shielded.vm)
    for page in (shielded.page(DATA), 0x8050000):
        answer = kernel.ask_host_by_msr(run_context_request(page))
        assert answer & 0xFFF == 0x017
        assert answer >> 32 & 0xFF == 1


def test_the_host_sees_ciphertext(shielded: Shielded) -> None:
    page = shielded.page(DATA)
    host = shielded.vm.machine.host_view()
    assert SECRET.to_bytes(8, "little") not in host.read(page, PAGE)
    assert shielded.vm.machine.view(vmpl=2).read_u64(page) == SECRET
