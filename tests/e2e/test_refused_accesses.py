# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code of a booted kernel writes to pages that a service guards: refused, heard, decided."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.hijack import CODE, RESULT, Hijack
from tests.e2e.hostile_module import HostileKernel
from tests.e2e.snapshots import OPEN_KERNEL
from tests.guarding import ALLOW, HEARD, MEMORY, PROTECT, Guard
from tests.machine_code import assemble
from tests.services.kci.debian_image import kernel_image
from veil.cvm import ConfidentialVM
from veil.formats.service_events import Event
from veil.host import NestedPageFault, RunResult
from veil.image.services_image import ServicesImage
from veil.remote import ChannelClient
from veil.snp import EntryFlag

#: What is refused here is what the tests' own service protects, and nothing else.
SERVICES = ServicesImage(
    "tests.guarding:WithLog",
    (*OPEN_KERNEL.packages, "tests.guarding"),
    OPEN_KERNEL.settings,
    OPEN_KERNEL.memory + MEMORY,
)
GUARDED, SOURCE, IDT, HANDLER = CODE + 0x40000, CODE + 0x41000, CODE + 0x42000, CODE + 0x43000
#: where Linux maps its image (Documentation/arch/x86/x86_64/mm.rst); without KASLR it lies where it is linked
_TEXT_MAP = 0xFFFFFFFF80000000
WRITE_OF_VMPL_3 = 1 << 36 | 1 << 31 | 1 << 1

Resume = Callable[[], ConfidentialVM]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshots") / "guarded"
    with ConfidentialVM(services=SERVICES, vcpus=2, fresh=True) as vm:
        vm.snapshot(path)
    return path


@pytest.fixture
def resume(guarded: Path) -> Iterator[Resume]:
    made: list[ConfidentialVM] = []

    def make() -> ConfidentialVM:
        made.append(ConfidentialVM.restore(guarded, services=SERVICES))
        return made[-1]

    yield make
    for vm in made:
        vm.close()


def ask(vm: ConfidentialVM, call: int, body: bytes = b"") -> bytes:
    with ChannelClient(vm.user_transport(timeout=60)) as client:
        return client.request(Guard.guid, call, body)


def protect(vm: ConfidentialVM, allowed: int) -> Hijack:
    """A hijacked kernel whose page GUARDED is code."""
    kernel = Hijack(vm)
    kernel.kernel.zero(GUARDED, 4096)
    ask(vm, PROTECT, struct.pack("<Q", GUARDED))
    ask(vm, ALLOW, bytes((allowed,)))
    return kernel


def run(kernel: Hijack, code: str) -> None:
    """Until it says that it is done; raises what ends the guest."""
    kernel.start(f"{code}\nmov qword ptr [{RESULT + 16}], 1\n1: hlt\njmp 1b")
    done = kernel.vm.hypervisor.run(until=lambda: kernel.kernel.read_u64(RESULT + 16) == 1, timeout=60)
    assert done == RunResult.DONE


def store(value: int, at: int = GUARDED) -> str:
    return f"mov rdi, {at}\nmov rax, {value:#x}\nmov [rdi], rax"


def refuse(kernel: Hijack, code: str) -> None:
    with pytest.raises(NestedPageFault, match="VMPL 3 has no permission") as caught:
        run(kernel, code)
    assert (caught.value.gpa, caught.value.vcpu, caught.value.vmpl) == (GUARDED, 0, 3)
    assert caught.value.info & WRITE_OF_VMPL_3 == WRITE_OF_VMPL_3


def test_a_store_is_decided_each_time(resume: Resume) -> None:
    kernel = protect(resume(), allowed=1)
    run(kernel, f"{store(0x1122334455667788)}\nmov rax, [rdi]\nmov [{RESULT}], rax")
    assert kernel.result() == kernel.monitor.read_u64(GUARDED) == 0x1122334455667788
    refuse(kernel, store(0x666))
    assert kernel.monitor.read_u64(GUARDED) == 0x1122334455667788
    # Whatever the host tries now, nothing enters the context.
    kernel.vm.machine.vmrun(kernel.vmcb)
    assert kernel.vmcb.exit_code == (1 << 64) - 1


def test_unprotected_the_store_goes_through_and_nobody_hears(resume: Resume) -> None:
    kernel = protect(resume(), allowed=0)
    kernel.open_to_kernel(GUARDED)
    run(kernel, store(0x666))
    assert kernel.monitor.read_u64(GUARDED) == 0x666


def test_a_host_that_never_hands_it_on(resume: Resume) -> None:
    kernel = protect(resume(), allowed=1)
    kernel.vm.hypervisor.hands_on_refusals = lambda: False
    refuse(kernel, store(0x666))
    assert kernel.monitor.read_u64(GUARDED) == 0


def test_users_are_served_when_a_refusal_has_ended_the_kernel(resume: Resume) -> None:
    kernel = protect(resume(), allowed=0)
    end = kernel.vm.hypervisor.kernel_end
    end.is_outlived = True
    kernel.start(store(0x666))
    kernel.vm.hypervisor.run(until=lambda: end.error is not None, timeout=60)
    assert isinstance(end.error, NestedPageFault)
    assert ask(kernel.vm, HEARD)
    assert kernel.monitor.read_u64(GUARDED) == 0


def test_string_stores(resume: Resume) -> None:
    kernel = protect(resume(), allowed=1)
    kernel.kernel.write(SOURCE, b"patched text")
    copy = f"mov rdi, {GUARDED + 5}\nmov rsi, {SOURCE}\nmov ecx, 12\ncld\nrep movsb"
    run(kernel, f"{copy}\nmov [{RESULT}], rcx\nmov [{RESULT + 8}], rdi")
    assert kernel.monitor.read(GUARDED, 20) == bytes(5) + b"patched text" + bytes(3)
    assert struct.unpack("<2Q", kernel.kernel.read(RESULT, 16)) == (0, GUARDED + 17)


def test_the_kernel_gets_an_exception_and_goes_on(resume: Resume) -> None:
    """Its handler finds the frame of #GP, steps over the instruction, and returns."""
    kernel = protect(resume(), allowed=1)
    gate = struct.pack("<HHHHII", HANDLER & 0xFFFF, 0x10, 0x8E00, HANDLER >> 16 & 0xFFFF, HANDLER >> 32, 0)
    kernel.kernel.write(IDT, bytes(16 * 13) + gate)
    kernel.kernel.write(IDT + 0x800, struct.pack("<HQ", 16 * 14 - 1, IDT))
    handler = f"pop rax\nmov [{RESULT}], rax\nadd qword ptr [rsp], 2\nmov rax, [rsp]\nmov [{RESULT + 8}], rax\niretq"
    kernel.kernel.write(HANDLER, assemble(handler, HANDLER))
    # The tables of descriptors that IRETQ needs are the booted kernel's: its CS 0x10 is in the GDT, which the
    # hijacked context's page tables do not map. So there is one of our own.
    gdt = struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    kernel.kernel.write(IDT + 0x900, gdt)
    kernel.kernel.write(IDT + 0x810, struct.pack("<HQ", len(gdt) - 1, IDT + 0x900))
    run(kernel, f"lgdt [{IDT + 0x810}]\nlidt [{IDT + 0x800}]\nmov rdi, {GUARDED}\nmov [rdi], eax")
    error_code, rip = struct.unpack("<2Q", kernel.kernel.read(RESULT, 16))
    assert error_code == 0
    assert CODE < rip < CODE + 0x100
    assert kernel.monitor.read(GUARDED, 8) == bytes(8)


def test_pages_and_vcpus_are_heard(resume: Resume) -> None:
    vm = resume()

    def heard() -> list[tuple[int, ...]]:
        return list(struct.iter_unpack("<HHQ", ask(vm, HEARD)))

    created = [item for item in heard() if item[0] == Event.VCPU_CREATED]
    assert [vcpu for _, vcpu, _ in created] == [1], "the boot made VCPU 1"
    assert any(event == Event.PAGES_GIVEN for event, _, _ in heard()), "and shared pages with devices"
    kernel = Hijack(vm)
    request = CODE + 0xA000
    kernel.kernel.write(request, struct.pack("<HHIQ", 1, 0, 0, GUARDED))
    before = len(heard())
    assert kernel.svsm_call(0, 1, request) == 0
    assert heard()[before:] == [(Event.PAGES_GIVEN, 0, GUARDED)]
    assert not vm.machine.rmp.entry(GUARDED)["flags"] & EntryFlag.VALIDATED


@pytest.mark.parametrize("protected", [True, False])
def test_a_module_that_writes_to_the_kernels_text(resume: Resume, tmp_path: Path, protected: bool) -> None:
    """The stock kernel survives: #GP in the module ends the one who inserts it, and the text is as it was."""
    vm = resume()
    hostile = HostileKernel(vm, tmp_path)
    gpa = kernel_image().symbols["audit_log_end"] - _TEXT_MAP & -4096
    if protected:
        ask(vm, PROTECT, struct.pack("<Q", gpa))
    before = vm.machine.view(vmpl=0).read(gpa, 4096)
    attack = "cd /root; insmod hostile.ko attack=unhook; echo status $?; dmesg | grep -c 'general protection fault'"
    said = vm.run(["sh", "-c", attack], timeout=60).stdout.decode().split()
    text = vm.machine.view(vmpl=0).read(gpa, 4096)
    if protected:
        assert said[1:] != ["0", "0"]
        assert int(said[2]) >= 1
        assert text == before
        assert hostile.sh("echo still here") == "still here\n"
    else:
        assert said == ["status", "0", "0"]
        assert text != before
