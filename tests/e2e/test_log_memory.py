# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of VeilS-LOG and of its program, attacked by a compromised kernel, by devices and by the host.

Each attack is machine code at CPL 0 of VMPL 3, or the host's own; each is made once more with its protection off.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.hijack import CODE, PVALIDATE, RESULT, RMPADJUST, SHARED, TABLES, Hijack, ask_by_msr
from tests.e2e.idle_time import NO_PULSE
from tests.e2e.log_guest import log_reader, log_service, protected_pages, service_parameters, verified
from veil.cvm import ConfidentialVM
from veil.errors import VeilError
from veil.formats.ghcb import NaeEvent
from veil.host import MalformedGhcb, Protection
from veil.monitor.page_book import Owner
from veil.monitor.svsm_call import ResultCode
from veil.remote.channel.client import RequestFailed
from veil.remote.errors import RemoteError, VerificationFailed
from veil.snp import ExitCode, Permission, RmpViolation

Resume = Callable[[], ConfidentialVM]

PAGE = 4096
C_BIT = 1 << 51
WRITE, IN_PAGE_WALK, FETCH = 1 << 1, 1 << 33, 1 << 4
RMP, ENC, VMPL = 1 << 31, 1 << 34, 1 << 36
#: Free memory of the kernel that Hijack has split into small RMP entries.
OWN = CODE + 0x9000

KINDS = [
    "entries", "end of the entries", "mailbox", "table of blocks", "settings", "program's header", "program",
    "VMSA of VMPL 1",
]  # fmt: skip


def refused(kernel: Hijack, code: str, gpa: int, *bits: int) -> None:
    """The code ends in a nested page fault of the page, with these bits in EXITINFO1, and has changed nothing."""
    before = kernel.monitor.read(gpa, PAGE)
    assert kernel.run(code) == ExitCode.NPF
    assert kernel.vmcb.exit_info_2 & -PAGE == gpa
    assert all(kernel.vmcb.exit_info_1 & bit for bit in bits), hex(kernel.vmcb.exit_info_1)
    assert kernel.result() == 0
    assert kernel.monitor.read(gpa, PAGE) == before


@pytest.fixture
def kernel(resume: Resume) -> Hijack:
    return Hijack(resume())


@pytest.mark.parametrize("kind", KINDS)
def test_access(kernel: Hijack, kind: str) -> None:
    """Read, write and execute, and the same as a shared page, that is past the encryption."""
    gpa = protected_pages(kernel)[kind]
    read = f"mov rax, [{gpa + 16}]\nmov [{RESULT}], rax\nhlt"
    write = f"mov qword ptr [{gpa + 16}], 0x666\nmov qword ptr [{RESULT}], 1\nhlt"
    shared = f"mov rax, [{SHARED + gpa + 16}]\nmov qword ptr [{RESULT}], 1\nhlt"
    shared_write = f"mov qword ptr [{SHARED + gpa + 16}], 0x666\nmov qword ptr [{RESULT}], 1\nhlt"
    refused(kernel, read, gpa, RMP, VMPL)
    refused(kernel, write, gpa, RMP, VMPL, WRITE)
    refused(kernel, f"mov rax, {gpa}\njmp rax", gpa, RMP, VMPL, FETCH)
    refused(kernel, shared, gpa, RMP)
    refused(kernel, shared_write, gpa, RMP, WRITE)

    kernel.open_to_kernel(gpa)
    expected = kernel.monitor.read_u64(gpa + 16)
    assert kernel.run(read) == ExitCode.HLT
    assert kernel.result() == expected
    assert kernel.run(write) == ExitCode.HLT
    assert kernel.monitor.read_u64(gpa + 16) == 0x666
    kernel.monitor.write(gpa, b"\xf4")
    assert kernel.run(f"mov rax, {gpa}\njmp rax") == ExitCode.HLT
    # Only the host can make a page shared; then it is not VMPL 1's memory any more.
    host = kernel.vm.machine.host_view()
    host.rmpupdate(gpa, assigned=False)
    assert kernel.run(shared_write) == ExitCode.HLT
    assert host.read_u64(gpa + 16) == 0x666


# The processor's own accesses


def test_page_tables(kernel: Hijack) -> None:
    """The walk would read entries as page tables, and write accessed and dirty bits into them."""
    gpa = protected_pages(kernel)["end of the entries"]
    walk = f"mov rax, {gpa | C_BIT}\nmov cr3, rax\nmov qword ptr [{RESULT}], 1\nhlt"
    refused(kernel, walk, gpa, VMPL, IN_PAGE_WALK)

    # Even if it could be read, its accessed bits could not be written.
    kernel.monitor.write(gpa, kernel.kernel.read(TABLES, PAGE))
    fresh = kernel.monitor.read_u64(gpa) & ~0x60
    kernel.monitor.write_u64(gpa, fresh)
    kernel.split(gpa)
    kernel.monitor.rmpadjust(gpa, vmpl=3, permissions=Permission.R)
    refused(kernel, walk, gpa, VMPL, IN_PAGE_WALK, WRITE)

    kernel.open_to_kernel(gpa)
    assert kernel.run(walk) == ExitCode.HLT
    assert kernel.result() == 1
    assert kernel.monitor.read_u64(gpa) == fresh | 0x20, "the walk wrote the accessed bit"


def test_stack_and_descriptor_tables(kernel: Hijack) -> None:
    gpa = protected_pages(kernel)["end of the entries"]
    own_gdt = f"lgdt [{OWN}]"
    flat = struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    kernel.kernel.write(OWN, struct.pack("<HQ", 0xFFF, OWN + 64))
    kernel.kernel.write(OWN + 16, struct.pack("<HQ", 0xFFF, gpa))
    kernel.kernel.write(OWN + 64, flat)
    handler = OWN + 0x200
    kernel.kernel.write(handler, b"\xf4")
    gate = struct.pack("<HHHHQ", handler & 0xFFFF, 0x10, 0x8E00, handler >> 16 & 0xFFFF, handler >> 32)
    attacks = {
        "stack": (f"mov rsp, {gpa + 0x800}\npush rsp\nhlt", 0, b""),
        "IDT": (f"{own_gdt}\nlidt [{OWN + 16}]\nint3", 48, gate),
        "GDT": (f"lgdt [{OWN + 16}]\nmov eax, 0x18\nmov ds, eax\nhlt", 0x18, flat[24:]),
    }
    for name, (code, _, _) in attacks.items():
        refused(kernel, code, gpa, VMPL, *([WRITE] if name == "stack" else []))
    kernel.open_to_kernel(gpa)
    for code, offset, content in attacks.values():
        kernel.kernel.write(gpa + offset, content)
        assert kernel.run(code) == ExitCode.HLT
    assert kernel.monitor.read_u64(gpa + 0x7F8) == gpa + 0x800


def test_ghcb(kernel: Hijack) -> None:
    """The host would write its answers into the entries, as it does into any GHCB."""
    gpa = protected_pages(kernel)["end of the entries"]
    before = kernel.monitor.read(gpa, PAGE)
    code = f"{ask_by_msr(gpa)}\nmov qword ptr [{RESULT}], 1\njmp $"
    host = kernel.vm.hypervisor
    kernel.start(code)
    with pytest.raises(MalformedGhcb, match="private"):
        host.run(until=lambda: kernel.result() == 1, timeout=60)
    assert kernel.monitor.read(gpa, PAGE) == before

    kernel.split(gpa)
    view = kernel.vm.machine.host_view()
    view.rmpupdate(gpa, assigned=False)
    kernel.start(code)
    with pytest.raises(MalformedGhcb, match="more privileged"):
        host.run(until=lambda: kernel.result() == 1, timeout=60)
    assert not any(view.read(gpa, PAGE)[0x390:0x400])

    host.protection = Protection()
    kernel.start(code)
    host.run(until=lambda: kernel.result() == 1, timeout=60)
    assert kernel.result() == 1
    assert any(view.read(gpa, PAGE)), "the host's answer is in the page"


# Instructions and calls that would change the RMP


@pytest.mark.parametrize("kind", KINDS)
def test_rmp_instructions(kernel: Hijack, kind: str) -> None:
    gpa = protected_pages(kernel)[kind]
    kernel.split(gpa)
    adjust = f"mov rax, {gpa}\nxor ecx, ecx\nmov edx, 0x0f03\n{RMPADJUST}\nmov [{RESULT}], rax\nhlt"
    rescind = f"mov rax, {gpa}\nxor ecx, ecx\nxor edx, edx\n{PVALIDATE}\nmov [{RESULT}], rax\nhlt"
    before = kernel.vm.machine.rmp.dump()
    for code in (adjust, rescind, rescind.replace("xor edx, edx", "mov edx, 1")):
        assert kernel.run(code) == ExitCode.HLT
        assert kernel.result() == 2, "FAIL_PERMISSION"
        assert kernel.vm.machine.rmp.dump() == before
    # A context of VMPL 0 could.
    for code in (adjust, rescind):
        assert kernel.run(code, vmpl=0) == ExitCode.HLT
        assert kernel.result() == 0
    assert kernel.vm.machine.rmp.dump() != before


REMAP_CA, CORE_PVALIDATE, CREATE_VCPU, DELETE_VCPU, DEPOSIT, WITHDRAW = range(6)
RESCIND, VALIDATE = 0, 4


def all_of_it(kernel: Hijack) -> bytes:
    """A digest of all that the services have."""
    services = kernel.veilmon.state.parameters.services
    return hashlib.sha256(kernel.monitor.read(services.gpa, services.size)).digest()


def pvalidate(kernel: Hijack, gpa: int, action: int) -> int:
    kernel.kernel.write(OWN, struct.pack("<HHIQ", 1, 0, 0, gpa | action))
    return kernel.svsm_call(0, CORE_PVALIDATE, OWN)


def attestation(kernel: Hijack, call: int, **places: int) -> int:
    at = {"report": OWN + PAGE, "nonce": OWN + 2 * PAGE, "manifest": OWN + 3 * PAGE, "certificates": 0, **places}
    sizes = (PAGE, PAGE, PAGE if at["certificates"] else 0)
    operation = struct.pack(
        "<QIIQH6xQIIQII", at["report"], sizes[0], 0, at["nonce"], 64, at["manifest"], sizes[1], 0,
        at["certificates"], sizes[2], 0,
    )  # fmt: skip
    kernel.kernel.write(OWN, operation.ljust(0x58, b"\0"))
    return kernel.svsm_call(1, call, OWN)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_to_veilmon(kernel: Hijack, kind: str) -> None:
    """Everything that VeilMon does for a page it is told, told of a page of the log."""
    gpa = protected_pages(kernel)[kind]
    kernel.split(gpa)
    own = OWN + 4 * PAGE
    calls: list[tuple[str, Callable[[], int]]] = [
        ("rescind", lambda: pvalidate(kernel, gpa, RESCIND)),
        ("validate", lambda: pvalidate(kernel, gpa, VALIDATE)),
        ("rescind 2 MiB", lambda: pvalidate(kernel, gpa & -(2 << 20), RESCIND | 1)),
        ("validate 2 MiB", lambda: pvalidate(kernel, gpa & -(2 << 20), VALIDATE | 1)),
        ("list of pages", lambda: kernel.svsm_call(0, CORE_PVALIDATE, gpa)),
        ("calling area", lambda: kernel.svsm_call(0, REMAP_CA, gpa)),
        ("VMSA", lambda: kernel.svsm_call(0, CREATE_VCPU, gpa, own, 0)),
        ("calling area of a VMSA", lambda: kernel.svsm_call(0, CREATE_VCPU, own, gpa, 0)),
        ("delete", lambda: kernel.svsm_call(0, DELETE_VCPU, gpa)),
        ("deposit", lambda: kernel.svsm_call(0, DEPOSIT, gpa, 1)),
        ("withdraw", lambda: kernel.svsm_call(0, WITHDRAW, gpa, 1)),
        ("block", lambda: kernel.svsm_call(16, 0, gpa, 1)),
        ("block that reaches in", lambda: kernel.svsm_call(16, 0, gpa - PAGE, 2)),
        ("operation", lambda: kernel.svsm_call(1, 0, gpa)),
        ("report", lambda: attestation(kernel, 0, report=gpa)),
        ("nonce", lambda: attestation(kernel, 0, nonce=gpa)),
        ("manifest", lambda: attestation(kernel, 1, manifest=gpa)),
        ("certificates", lambda: attestation(kernel, 0, certificates=gpa)),
    ]
    # No time passes for the services: they would write that nothing was heard of the kernel.
    kernel.vm.hypervisor.pulse.due_ns = NO_PULSE
    content, before = all_of_it(kernel), kernel.vm.machine.rmp.dump()
    for name, call in calls:
        assert call() >= 0x8000_0000, name
        assert kernel.vm.machine.rmp.dump() == before, name
    assert all_of_it(kernel) == content


@pytest.mark.parametrize("attack", ["rescind", "calling area", "VMSA", "block", "report"])
def test_calls_to_a_veilmon_without_its_book(kernel: Hijack, attack: str) -> None:
    """The counter-test: the page book is what stops them."""
    gpa = protected_pages(kernel)["program"]
    kernel.split(gpa)
    kernel.veilmon.state.book.claim(gpa, PAGE, Owner.KERNEL)
    content = all_of_it(kernel)
    entry = kernel.vm.machine.rmp.entry
    if attack == "rescind":
        assert pvalidate(kernel, gpa, RESCIND) == ResultCode.SUCCESS
        assert not entry(gpa)["flags"] & 2
    elif attack == "calling area":
        assert kernel.svsm_call(0, REMAP_CA, gpa) == ResultCode.SUCCESS
        assert all_of_it(kernel) != content, "VeilMon wrote into the program"
    elif attack == "VMSA":
        # No good VMSA, so the kernel gets its page back; it was not the kernel's.
        assert kernel.svsm_call(0, CREATE_VCPU, gpa, OWN, 0) == ResultCode.INVALID_PARAMETER
        assert kernel.kernel.read(gpa, PAGE) == kernel.monitor.read(gpa, PAGE)
    elif attack == "block":
        assert kernel.svsm_call(16, 0, gpa, 1) == ResultCode.SUCCESS
        assert kernel.veilmon.state.blocks[0] == (gpa, PAGE)
    else:
        assert attestation(kernel, 0, report=gpa) == ResultCode.SUCCESS
        assert all_of_it(kernel) != content, "a report lies over the program"


# The host, at the kernel's word

SHARE, MAKE_PRIVATE = 2 << 52, 1 << 52
MSR_PAGE_STATE, MSR_REGISTER = 0x014, 0x012


def taken(kernel: Hijack, gpa: int) -> bool:
    return not kernel.vm.machine.rmp.is_assigned(gpa)


def ask_to_take(kernel: Hijack, how: str, gpa: int) -> bool:
    """Code of the kernel that asks the host for a page of ours; does the host do it?"""
    if how == "MSR protocol":
        return kernel.ask_host_by_msr(gpa | SHARE | MSR_PAGE_STATE) == 0x015
    entry = gpa | SHARE if how == "GHCB page" else gpa & -(2 << 20) | SHARE | 1 << 56
    answer = kernel.ask_host(NaeEvent.PAGE_STATE_CHANGE, data=struct.pack("<HHIQ", 0, 0, 0, entry))
    assert answer[0] == 0
    return answer[1] == 0


@pytest.mark.parametrize("how", ["MSR protocol", "GHCB page", "GHCB page, 2 MiB"])
def test_kernel_asks_the_host_to_take_entries(kernel: Hijack, how: str) -> None:
    """What is taken away is gone: an honest host refuses, and all that was kept is still read and verified."""
    vm, pages = kernel.vm, protected_pages(kernel)
    pages["VeilMon"] = kernel.monitor_gpa
    before = vm.machine.rmp.dump()
    entries = [entry.raw for entry in verified(vm)]
    for kind, gpa in pages.items():
        assert not ask_to_take(kernel, how, gpa), kind
        assert not taken(kernel, gpa), kind
    assert vm.machine.rmp.dump() == before
    assert [entry.raw for entry in verified(vm)][: len(entries)] == entries
    # The kernel's own page is the kernel's to give.
    assert ask_to_take(kernel, "MSR protocol", OWN)
    assert taken(kernel, OWN)


@pytest.mark.parametrize("how", ["MSR protocol", "GHCB page", "GHCB page, 2 MiB"])
def test_kernel_asks_a_hostile_host(kernel: Hijack, how: str) -> None:
    """The counter-test, and what stays true: a host that obeys erases the evidence, and its user is told."""
    vm, gpa = kernel.vm, protected_pages(kernel)["entries"]
    verified(vm)
    vm.hypervisor.protection = Protection()
    assert ask_to_take(kernel, how, gpa)
    assert taken(kernel, gpa)
    with pytest.raises((RemoteError, VeilError)):
        verified(vm)


def test_honest_host_after_a_snapshot(kernel: Hijack, tmp_path: Path) -> None:
    kernel.vm.snapshot(tmp_path / "snapshot")
    with ConfidentialVM.restore(tmp_path / "snapshot") as again:
        other = Hijack(again)
        gpa = protected_pages(other)["entries"]
        assert not ask_to_take(other, "MSR protocol", gpa)
        assert verified(again)


def test_kernel_names_veilmons_shared_pages(kernel: Hijack) -> None:
    """As its GHCB, as buffer, as answer's page: the kernel can write these pages itself, a host need not do it too."""
    shared = kernel.veilmon.state.parameters.channel.gpa
    own = kernel.vm.hypervisor.vcpus[0].contexts[3].ghcb
    host = kernel.vm.machine.host_view()
    assert own is not None
    before = host.read(shared, PAGE)
    string = 0x3F8 << 16 | 1 << 4 | 1 << 2 | 1
    for honest in (True, False):
        if not honest:
            kernel.vm.hypervisor.protection = Protection()
        assert (kernel.ask_host_by_msr(shared | MSR_REGISTER) == shared | MSR_REGISTER + 1) != honest
        kernel.vm.hypervisor.vcpus[0].contexts[3].ghcb = own
        assert (kernel.ask_host(NaeEvent.IOIO, string, 4, scratch=shared)[0] == 2) == honest
        assert (kernel.ask_host(NaeEvent.APIC_IDS, shared, rax=1)[0] == 2) == honest
        assert (host.read(shared, PAGE) == before) == honest


# Devices, at the kernel's word


def _forge(kernel: Hijack, queue: int, address: int, *, write: bool) -> None:
    """Code of the kernel that puts one descriptor with this address into a queue of the console."""
    found = kernel.vm.platform.console.queues[queue]
    index = found._next_avail
    slot = found.avail + 4 + 2 * (index & found.size - 1)
    shared = SHARED
    code = f"""
        mov rax, {address}
        mov [{shared + found.desc}], rax
        mov dword ptr [{shared + found.desc + 8}], 64
        mov dword ptr [{shared + found.desc + 12}], {2 if write else 0}
        mov word ptr [{shared + slot}], 0
        mov word ptr [{shared + found.avail + 2}], {index + 1 & 0xFFFF}
        hlt
    """
    assert kernel.run(code) == ExitCode.HLT


def _own_shared_page(kernel: Hijack) -> int:
    """A page of the kernel that it has shared with the host."""
    kernel.monitor.pvalidate(OWN, validate=False)
    kernel.vm.machine.host_view().rmpupdate(OWN, assigned=False)
    return OWN


def test_device_reads(kernel: Hijack) -> None:
    """The device fetches nothing from the log for the kernel; if it did, ciphertext."""
    gpa = protected_pages(kernel)["entries"]
    console = kernel.vm.platform.console
    sent: list[bytes] = []
    console.ports[0].on_data = sent.append
    plain = kernel.monitor.read(gpa, 64)
    _forge(kernel, 1, gpa, write=False)
    console._serve(1)
    assert "a more privileged level's memory" in (console.fault or "")
    assert not sent
    console.fault = None
    kernel.vm.hypervisor.protection = Protection()
    _forge(kernel, 1, gpa, write=False)
    console._serve(1)
    assert len(b"".join(sent)) == 64
    assert not any(plain[at : at + 8] in sent[0] for at in range(0, 64, 8))

    place = _own_shared_page(kernel)
    kernel.kernel.write(place, plain, private=False)
    sent.clear()
    _forge(kernel, 1, place, write=False)
    console._serve(1)
    assert sent == [plain]


def test_device_writes(kernel: Hijack) -> None:
    """The device's write is refused, and the kernel's queue is broken by it; the entries are not."""
    gpa = protected_pages(kernel)["entries"]
    console = kernel.vm.platform.console
    entries = verified(kernel.vm)
    before = kernel.monitor.read(gpa, PAGE)

    def fill(address: int) -> None:
        port = console.ports[0]
        port.ready = port.open = True
        queue = console.queues[0]
        # The kernel's own buffers first come back, then its forged one is next.
        queue._next_avail = queue._read_u16(queue.avail + 2)
        _forge(kernel, 0, address, write=True)
        port._outbox.append(b"forged")
        port._waiting += 6
        console._serve(0)

    for words in ("a more privileged level's memory", "the page is the guest's"):
        fill(gpa)
        assert words in (console.fault or "")
        assert kernel.monitor.read(gpa, PAGE) == before
        # Once more with a host that protects nothing.
        kernel.vm.hypervisor.protection = Protection()
        console.fault = None
        console.ports[0]._outbox.clear()
    kernel.start("jmp $")
    assert [entry.raw for entry in verified(kernel.vm)][: len(entries)] == [entry.raw for entry in entries]

    place = _own_shared_page(kernel)
    fill(place)
    assert console.fault is None
    assert kernel.vm.machine.host_view().read(place, 6) == b"forged"


# The host


def test_host_reads_and_writes(vm: ConfidentialVM) -> None:
    gpa, size = service_parameters(vm).memory_gpa, 4 * PAGE
    host = vm.machine.host_view()
    entries = verified(vm)
    plain, seen = vm.machine.view(vmpl=1).read(gpa, size), host.read(gpa, size)
    for entry in entries:
        assert entry.raw in plain
        assert entry.raw not in seen
    for page in range(gpa, gpa + size, PAGE):
        with pytest.raises(RmpViolation):
            host.write(page, b"forged")
    assert [entry.raw for entry in verified(vm)[: len(entries)]] == [entry.raw for entry in entries]


def test_host_takes_entries_and_gives_others_back(resume: Resume) -> None:
    """RMPUPDATE there and back: neither what was there nor what the host put there is read as validated memory."""
    vm = resume()
    gpa = service_parameters(vm).memory_gpa
    host, monitor = vm.machine.host_view(), vm.machine.view(vmpl=0)
    reading = log_reader(vm)
    list(reading.fetch())
    host.psmash(gpa & -(2 << 20))
    for content in (None, b"forged"):
        host.rmpupdate(gpa, assigned=False)
        if content is not None:
            host.write(gpa, content)
        host.rmpupdate(gpa, assigned=True)
        for view in (vm.machine.view(vmpl=1), monitor):
            with pytest.raises(RmpViolation):
                view.read(gpa, 8)
        fresh = log_reader(vm)
        with pytest.raises(RequestFailed, match="the service log failed"):
            list(fresh.fetch())
    # Without the Validated bit the host's content would be the log's; only the signed tree still tells.
    monitor.pvalidate(gpa)
    monitor.rmpadjust(gpa, vmpl=1, permissions=Permission.RW)
    with pytest.raises((VerificationFailed, ValueError)):
        verified(vm)
    assert log_service(vm).store.next > 0


def test_host_runs_protected_pages(resume: Resume) -> None:
    """As VMSAs: by itself, or because the kernel asked for AP creation with them."""
    kernel = Hijack(resume())
    for kind, gpa in protected_pages(kernel).items():
        vmcb = kernel.vm.machine.new_vmcb()
        vmcb.vmsa_pa = gpa
        kernel.vm.machine.vmrun(vmcb)
        # The counter-test is the page that VeilMon did make one.
        assert (vmcb.exit_code == ExitCode.INVALID) == (kind != "VMSA of VMPL 1"), kind
