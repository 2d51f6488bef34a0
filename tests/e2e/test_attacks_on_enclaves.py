# SPDX-License-Identifier: GPL-2.0-or-later
"""What a compromised kernel tries against a running enclave, and that it would succeed without the protection."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.enclave_images import DATA, PRINT, call_window, enclave_image
from tests.e2e.hijack import PVALIDATE, RESULT, RMPADJUST, Hijack
from tests.e2e.snapshots import RunSnapshots
from tests.e2e.test_enclaves import ENCLAVES
from tests.services.enc.page_walk import walk
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.board import C_BIT
from veil.formats.enclave_calls import ENC_NUMBER, PAGED_AT_ONCE, EnclaveCall, Reclaim
from veil.formats.enclaves import RUNTIME, TOP
from veil.formats.ghcb import run_context_request, run_vmpl_request
from veil.formats.page_owners import Owner
from veil.formats.request_block import BlockRequest, read_answer, write_request
from veil.formats.status import Status
from veil.services.context import Asking, MonitorClient
from veil.services.enc.enclave import Enclave
from veil.services.enc.service import EncService
from veil.services.program import ServiceDomain
from veil.snp import ExitCode, RmpResult, RmpViolation
from veil.snp.layouts import Vmsa

pytestmark = pytest.mark.usefixtures("idle_time_passes")

PAGE = 4096
SECRET = 0x1234_5678_9ABC_DEF0
#: memory of the kernel's
_LIST = 0x8048000
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


def _start(vm: ConfidentialVM, folder: Path) -> None:
    image = folder / "waits.enclave"
    image.write_bytes(enclave_image(WAITS))
    vm.copy_in(image, image_place(image))
    start = f"setsid {' '.join(enclave_command(image, []))} > /tmp/out 2>&1 &"
    wait = "for i in $(seq 100); do grep -q hello /tmp/out && exit 0; sleep 0.1; done; cat /tmp/out; exit 1"
    result = vm.run(["sh", "-c", f"{start} {wait}"])
    assert result.exit_status == 0, result.stdout


@pytest.fixture
def shielded(snapshots: RunSnapshots, tmp_path: Path) -> Iterator[Shielded]:
    guest = Configuration.make(services=ENCLAVES)

    def make(place: Path) -> None:
        with ConfidentialVM.restore(snapshots.of(guest)) as vm:
            _start(vm, tmp_path)
            vm.snapshot(place)

    with ConfidentialVM.restore(snapshots.once(f"{guest.key()}-waits", make)) as vm:
        services = vm.machine.hosted_program(vm.hypervisor.vcpus[0].contexts[1].vmcb.vmsa_pa)
        assert isinstance(services, ServiceDomain)
        (enc,) = (service for service in services.services if isinstance(service, EncService))
        # Services come back from a snapshot when they are entered first.
        vm.hypervisor.run(lambda: hasattr(enc, "_enclaves"), timeout=60)
        (enclave,) = enc._enclaves.values()
        yield Shielded(vm, enclave)


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


@pytest.mark.parametrize("what", ["nothing there", "code that can be written", "a page of the kernel's"])
def test_changing_its_page_tables(shielded: Shielded, what: str) -> None:
    """The entry of the page with its code: gone, with more rights, or leading to what the kernel has written."""
    kernel, tables = Hijack(shielded.vm), shielded.enclave.tables
    entry, forged = _entry(kernel, tables.root, RUNTIME), 0x8060000
    before = kernel.monitor.read_u64(entry)
    honest = walk(kernel.monitor, tables.root, RUNTIME)
    assert honest == (5, shielded.page(RUNTIME))
    value, changed = {
        "nothing there": (0, (0, 0)),
        "code that can be written": (before | 2, (7, honest[1])),
        "a page of the kernel's": (before & ~(C_BIT - PAGE) | forged, (5, forged)),
    }[what]
    write = f"mov rax, {value}\nmov [{entry}], rax\nhlt"
    assert kernel.run(write) == ExitCode.NPF
    assert walk(kernel.monitor, tables.root, RUNTIME) == honest

    kernel.open_to_kernel(entry & -PAGE)
    assert kernel.run(write) == ExitCode.HLT
    assert walk(kernel.monitor, tables.root, RUNTIME) == changed


def _entry(kernel: Hijack, root: int, va: int) -> int:
    """Where the entry of the first level is."""
    table = root
    for shift in (39, 30, 21):
        table = kernel.monitor.read_u64(table + (va >> shift & 511) * 8) & C_BIT - PAGE
    return table + (va >> 12 & 511) * 8


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


def test_rmpadjust_of_its_memory(shielded: Shielded) -> None:
    """The kernel gives itself all rights; a level that may do so then reads."""
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    adjust = f"mov rax, {page}\nxor ecx, ecx\nmov edx, 0x0f03\n{RMPADJUST}\nmov [{RESULT}], rax\nhlt"
    read = f"mov rax, [{page}]\nmov [{RESULT}], rax\nhlt"
    kernel.split(page)
    assert kernel.run(adjust) == ExitCode.HLT
    assert kernel.result() == RmpResult.FAIL_PERMISSION
    assert kernel.run(read) == ExitCode.NPF

    # The counter-test: the same code in a context of VMPL 0, which the kernel's is not.
    assert kernel.run(adjust, vmpl=0) == ExitCode.HLT
    assert kernel.result() == RmpResult.SUCCESS
    assert kernel.run(read) == ExitCode.HLT
    assert kernel.result() == SECRET


def test_pvalidate_of_its_memory(shielded: Shielded) -> None:
    """The kernel takes a page's validation away, after which the host might put another one there."""
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    rescind = f"mov rax, {page}\nxor ecx, ecx\nxor edx, edx\n{PVALIDATE}\nmov [{RESULT}], rax\nhlt"
    enclave = shielded.vm.machine.view(vmpl=2)
    kernel.split(page)
    assert kernel.run(rescind) == ExitCode.HLT
    assert kernel.result() == RmpResult.FAIL_PERMISSION
    assert enclave.read_u64(page) == SECRET

    # The counter-test: the same code in a context of VMPL 0.
    assert kernel.run(rescind, vmpl=0) == ExitCode.HLT
    assert kernel.result() == RmpResult.SUCCESS
    with pytest.raises(RmpViolation):
        enclave.read_u64(page)


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
        lambda: invalidate(kernel, page),
        lambda: kernel.svsm_call(0, 2, page, 0x8040000, 0),
        lambda: kernel.svsm_call(0, 3, page),
        lambda: kernel.svsm_call(16, 0, page, 1),
    ]
    assert all(call() != 0 for call in calls)
    assert kernel.veilmon.book.owner(page) is owner
    assert kernel.monitor.read(page, PAGE) == before


def invalidate(kernel: Hijack, page: int) -> int:
    """PVALIDATE of VeilMon's for one page, by its list; the answer."""
    kernel.kernel.write(_LIST, struct.pack("<HHIQ", 1, 0, 0, page))
    return kernel.svsm_call(0, 1, _LIST)


def test_without_the_page_book_it_would_give_a_page_back(shielded: Shielded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: VeilMon invalidates what the kernel names, and the enclave's page is gone."""
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    enclave = shielded.vm.machine.view(vmpl=2)
    assert invalidate(kernel, page) != 0
    assert enclave.read_u64(page) == SECRET
    monkeypatch.setattr(type(kernel.veilmon.book), "is_kernel", lambda book, gpa, size=1: True)
    assert invalidate(kernel, page) == 0
    with pytest.raises(RmpViolation):
        enclave.read_u64(page)


def ask_service(kernel: Hijack, call: EnclaveCall, body: bytes, pages: tuple[int, ...] = ()) -> tuple[Status, bytes]:
    """A request of the kernel's to VeilS-ENC, in VCPU 0's block and by a domain switch, as its driver makes it."""
    gpa, size = kernel.veilmon.state.blocks[0]
    write_request(kernel.kernel, gpa, size, BlockRequest(ENC_NUMBER, call, body, pages=pages))
    kernel.ask_host_by_msr(run_vmpl_request(1))
    answer = read_answer(kernel.kernel, gpa, size)
    assert answer is not None
    return answer


def test_its_pages_for_another_enclave(shielded: Shielded) -> None:
    """The kernel makes a second one, and gives it what the first has, what others have, or one page twice."""
    kernel, enclave, own = Hijack(shielded.vm), shielded.enclave, 0x8060000
    services = shielded.vm.hypervisor.vcpus[0].contexts[1].vmcb.vmsa_pa
    attempts = {
        "memory": (shielded.page(DATA),), "tables": (enclave.tables.root,), "registers": (enclave.contexts[0],),
        "window": (enclave.windows[0][0],), "the services'": (services,), "VeilMon's": (kernel.monitor_gpa,),
        "one of them its own": (own, shielded.page(DATA)), "the same twice": (own, own),
    }  # fmt: skip
    status, created = ask_service(kernel, EnclaveCall.CREATE, enclave.layout.pack())
    assert status == Status.OK
    for what, pages in attempts.items():
        before = [kernel.veilmon.book.owner(page) for page in pages]
        status, _ = ask_service(kernel, EnclaveCall.DONATE, created[:4], pages)
        assert status == (Status.BAD_REQUEST if what == "the same twice" else Status.NOT_ALLOWED), what
        assert [kernel.veilmon.book.owner(page) for page in pages] == before
    assert ask_service(kernel, EnclaveCall.DONATE, created[:4], (own,))[0] == Status.OK


def test_without_the_page_book_another_enclave_would_have_its_page(
    shielded: Shielded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test: its page becomes the second one's page table, which that one's service writes."""
    kernel, page = Hijack(shielded.vm), shielded.page(DATA)
    enclave = shielded.vm.machine.view(vmpl=2)
    _, created = ask_service(kernel, EnclaveCall.CREATE, shielded.enclave.layout.pack())

    def take(monitor: MonitorClient, pages: Sequence[int], target: Owner) -> Asking[None]:
        return
        yield

    monkeypatch.setattr("veil.services.enc.enclave.take", take)
    assert ask_service(kernel, EnclaveCall.DONATE, created[:4], (page,))[0] == Status.OK
    assert enclave.read_u64(page) == SECRET
    pages = tuple(range(0x8070000, 0x8070000 + shielded.enclave.layout.window_pages * PAGE, PAGE))
    ask_service(kernel, EnclaveCall.WINDOW, created[:4] + bytes(4), pages)
    assert enclave.read_u64(page) == 0


@pytest.mark.parametrize("checked", [True, False])
def test_the_runtimes_pages_stay(shielded: Shielded, monkeypatch: pytest.MonkeyPatch, checked: bool) -> None:
    """The kernel asks for all pages, and to have the thread interrupted where it is: in the runtime.

    The counter-test: without these two bounds its page is taken out of the tables, and goes.
    """
    kernel, enclave = Hijack(shielded.vm), shielded.enclave
    number, page = struct.pack("<I", enclave.number), shielded.page(RUNTIME)
    if not checked:
        monkeypatch.setattr("veil.services.enc.enclave.WINDOW", TOP)
    assert ask_service(kernel, EnclaveCall.INTERRUPT, number + bytes(4))[0] == Status.OK
    assert walk(kernel.monitor, enclave.tables.root, RUNTIME) == ((5, page) if checked else (0, 0))
    assert ask_service(kernel, EnclaveCall.INTERRUPT, number + b"\1\0\0\0")[0] == Status.NOT_ALLOWED
    # The first time that the service looks it has just been used.
    for _ in range(2):
        status, _ = ask_service(kernel, EnclaveCall.RECLAIM, Reclaim(enclave.number, PAGED_AT_ONCE).pack())
        assert status == Status.OK
    assert (kernel.veilmon.book.owner(page) is Owner.ENCLAVE) is checked


def test_other_contexts_are_not_run(shielded: Shielded) -> None:
    """The host is asked to run a page that VeilMon did not seal: one of the enclave's own, one of the kernel's, and one
    that the kernel has made like the enclave's own VMSA, with another entry."""
    kernel, forged = Hijack(shielded.vm), 0x8050000
    vmsa = kernel.monitor.read(shielded.enclave.contexts[0], PAGE)
    kernel.kernel.write(forged, vmsa[: Vmsa.rip.offset] + bytes(8) + vmsa[Vmsa.rip.offset + 8 :])
    for page in (shielded.page(DATA), 0x8060000, forged):
        answer = kernel.ask_host_by_msr(run_context_request(page))
        assert answer & 0xFFF == 0x017
        assert answer >> 32 & 0xFF == 1
    # VeilMon makes no VCPU of level 2 for a kernel.
    assert kernel.svsm_call(0, 2, forged, 0x8040000, 0) != 0
    vmcb = shielded.vm.machine.new_vmcb()
    vmcb.vmsa_pa = forged
    shielded.vm.machine.vmrun(vmcb)
    assert vmcb.exit_code == ExitCode.INVALID

    # The counter-test: were it one, it would run, here to a page fault at address 0 of the enclave.
    kernel.split(forged)
    kernel.monitor.rmpadjust(forged, vmpl=2, permissions=0, vmsa=True)
    shielded.vm.machine.vmrun(vmcb, time.monotonic_ns() + 100_000_000)
    assert vmcb.exit_code != ExitCode.INVALID
    assert kernel.monitor.read_u64(forged + Vmsa.cr2.offset) == 0


def test_the_host_sees_ciphertext(shielded: Shielded) -> None:
    page = shielded.page(DATA)
    host = shielded.vm.machine.host_view()
    assert SECRET.to_bytes(8, "little") not in host.read(page, PAGE)
    assert shielded.vm.machine.view(vmpl=2).read_u64(page) == SECRET
