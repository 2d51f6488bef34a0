# SPDX-License-Identifier: GPL-2.0-or-later
"""What services decide about accesses that were refused, with a hostile host, kernel and services around VeilMon."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guarding import ALLOW, HEARD, PROTECT, RELEASE, Guard
from tests.monitor.echo import Services as Echoes
from tests.monitor.faults import C_BIT, CODE_AT, IDT, PML4, REFUSED, STACK, fault, gate, stopped
from tests.monitor.harness import FREE, KERNEL_VMSA, MONITOR, NPF, PAGE, SERVICES, SMALL, VMGEXIT, Bench, kernel_vmsa
from tests.monitor.recorder import Recorders, guard_of, guarded
from veil.formats.errors import FormatError
from veil.formats.page_owners import Owner
from veil.formats.request_block import BlockRequest, read_answer, write_request
from veil.formats.service_domain import ReadVirtual
from veil.formats.service_events import VECTOR_PF, Decision, RefusedAccess, Registers, Report, Verdict
from veil.formats.status import Status
from veil.monitor import Option
from veil.monitor.svsm_call import ResultCode
from veil.services import Asking, MonitorRefused, ServiceDomain
from veil.snp import SnapshotError

OK = ResultCode.SUCCESS
RUN_MONITOR, RUN_SERVICES, RUN_KERNEL = 0x016, 1 << 32 | 0x016, 3 << 32 | 0x016


@pytest.fixture
def bench() -> Bench:
    return guarded()


# A refused access is decided


def test_what_the_service_is_asked(bench: Bench) -> None:
    vmsa = fault(bench, SMALL + 8, r15=15, cpl=0)
    (asked,) = guard_of(bench).asked
    assert (asked.vcpu, asked.vmsa, asked.gpa, asked.info) == (0, KERNEL_VMSA, SMALL + 8, REFUSED)
    assert asked.owner is Owner.KERNEL_CODE
    registers = asked.registers
    assert (registers.rip, registers.gprs[0], registers.gprs[7], registers.gprs[15]) == (
        CODE_AT, 0x1122334455667788, SMALL + 8, 15,
    )  # fmt: skip
    assert (registers.cr0, registers.cr3, registers.cr4, registers.cpl) == (0x80050033, PML4 | C_BIT, 0x620, 0)
    assert stopped(vmsa), "nothing is allowed yet"
    assert bench.view(0).read(SMALL, 16) == bytes(16)


def test_a_store_that_is_carried_out(bench: Bench) -> None:
    assert bench.ask(Guard.number, ALLOW, b"\1")[0] == Status.OK
    vmsa = fault(bench)
    assert not stopped(vmsa)
    assert (vmsa.rip, vmsa.rflags) == (CODE_AT + 3, 0x202)
    assert bench.kernel.read_u64(SMALL) == 0x1122334455667788
    assert stopped(fault(bench)), "allowed once"


def test_registers_of_a_string_store(bench: Bench) -> None:
    assert bench.ask(Guard.number, ALLOW, b"\1")[0] == Status.OK
    bench.kernel.write(SMALL + PAGE, b"from here")
    vmsa = fault(bench, SMALL + PAGE - 4, code="f3a4", rcx=9, rsi=SMALL + PAGE)
    assert bench.kernel.read(SMALL + PAGE - 4, 4) == b"from"
    assert (vmsa.rcx, vmsa.rsi, vmsa.rdi, vmsa.rip) == (5, SMALL + PAGE + 4, SMALL + PAGE, CODE_AT)


def test_only_what_can_be_changed_is(bench: Bench) -> None:
    """RFLAGS has no reserved bits, whatever a service says; other registers stay."""
    guard_of(bench).say = lambda access: access.resume(rflags=(1 << 64) - 1, rip=5)
    vmsa = fault(bench)
    assert (vmsa.rip, vmsa.rflags, vmsa.cr3, vmsa.vmpl) == (5, 0x3F7FD7, PML4 | C_BIT, 3)


@pytest.mark.parametrize("how", ["raises", "no verdict", "late", "endless", "other type"])
def test_a_service_that_fails_stops_the_vcpu_and_nothing_else(bench: Bench, how: str) -> None:
    guard = guard_of(bench)

    def late(access: RefusedAccess) -> Asking[Verdict]:
        yield from guard.context.monitor.read_virtual(0, CODE_AT, 1)
        raise KeyError

    def endless(access: RefusedAccess) -> Asking[Verdict]:
        while True:
            yield from guard.context.monitor.read_virtual(0, CODE_AT, 1)

    def fails(access: RefusedAccess) -> Verdict:
        raise KeyError

    guard.say = {
        "raises": fails, "no verdict": lambda access: None, "late": late, "endless": endless,
        "other type": lambda access: Decision.RESUME,
    }[how]  # fmt: skip
    assert stopped(fault(bench))
    assert bench.services is not None
    assert len(bench.services.mistakes) == 1
    assert bench.ask(Guard.number, HEARD)[0] == Status.OK


# What is no such fault


@pytest.mark.parametrize(
    "fields",
    [
        {"info": REFUSED & ~(1 << 36)},
        {"info": REFUSED & ~(1 << 36), "gpa": SMALL + PAGE},
        {"info": REFUSED & ~(1 << 31)},
        {"info": REFUSED | 1 << 35},
        {"gpa": MONITOR},
        {"gpa": SERVICES},
        {"gpa": 1 << 50},
        {"gpa": KERNEL_VMSA},
        {"exit_int_info": 1 << 31 | 3 << 8 | 14},
    ],
)
def test_faults_that_are_nobodys_to_decide(bench: Bench, fields: dict[str, Any]) -> None:
    guard_of(bench).say = lambda access: access.resume(rip=5)
    vmsa = fault(bench, **fields)
    assert stopped(vmsa)
    assert vmsa.rip == CODE_AT
    assert not guard_of(bench).asked


@pytest.mark.parametrize("code", [0x60, 0x78, VMGEXIT, 0x7F, (1 << 64) - 1])
def test_a_host_that_reports_what_did_not_happen(bench: Bench, code: int) -> None:
    guard_of(bench).say = lambda access: access.resume(rip=5)
    vmsa = fault(bench, guest_exit_code=code)
    assert not stopped(vmsa)
    assert (vmsa.rip, vmsa.guest_exit_code) == (CODE_AT, code)
    assert not guard_of(bench).asked


def test_a_host_that_reports_one_again(bench: Bench) -> None:
    assert bench.ask(Guard.number, ALLOW, b"\2")[0] == Status.OK
    vmsa = fault(bench)
    bench.vmsa(KERNEL_VMSA).rax = 0x666
    for _ in range(3):
        bench.enter(0)
    assert (len(guard_of(bench).asked), vmsa.rip) == (1, CODE_AT + 3)
    assert bench.kernel.read_u64(SMALL) == 0x1122334455667788
    # One that was refused stays refused.
    bench.ask(Guard.number, ALLOW, b"\0")
    vmsa = fault(bench)
    for _ in range(3):
        bench.enter(0)
    assert stopped(vmsa)
    assert len(guard_of(bench).asked) == 2


def test_a_host_that_reports_it_on_another_vcpu(bench: Bench) -> None:
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)
    assert bench.ask(Guard.number, ALLOW, b"\1")[0] == Status.OK
    vmsa = fault(bench, enter=False)
    bench.enter(1)
    assert not guard_of(bench).asked
    assert (vmsa.rip, vmsa.guest_exit_code) == (CODE_AT, NPF)
    bench.enter(0)
    assert vmsa.rip == CODE_AT + 3


def test_a_fault_that_the_kernel_made_up(bench: Bench) -> None:
    """It fills the page of a new context; what that context did, only the hardware says."""
    forged = kernel_vmsa(
        guest_exit_code=NPF, exit_info_1=REFUSED, exit_info_2=SMALL, rdi=SMALL, rip=CODE_AT, cr3=PML4 | C_BIT,
        cr0=0x80050033, cr4=0x620,
    )  # fmt: skip
    bench.kernel.write(CODE_AT, bytes.fromhex("488907"))
    bench.kernel.write(FREE, forged)
    assert bench.ask(Guard.number, ALLOW, b"\1")[0] == Status.OK
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)
    assert not guard_of(bench).asked
    assert not stopped(bench.vmsa(FREE))


def test_a_host_that_does_not_run_the_services(bench: Bench) -> None:
    bench.ask(Guard.number, ALLOW, b"\1")
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == RUN_SERVICES else None
    # It comes back to VeilMon each time, and says that VMPL 1 ran.
    vmsa = fault(bench)
    assert stopped(vmsa)
    assert bench.kernel.read_u64(SMALL) == 0
    # Nor is it decided when it is too late.
    bench.on_request = lambda request: None
    bench.enter(0, vmpl=1)
    assert not guard_of(bench).asked
    assert bench.kernel.read_u64(SMALL) == 0


def test_a_host_that_runs_the_kernel_while_it_is_decided(bench: Bench) -> None:
    """VMRUN refuses it; nor can its VMSA be deleted."""
    seen = []

    def on_request(request: int) -> None:
        if request == RUN_SERVICES:
            seen.append(stopped(bench.vmsa(KERNEL_VMSA)))

    bench.ask(Guard.number, ALLOW, b"\1")
    bench.on_request = on_request
    fault(bench)
    assert seen
    assert all(seen)


def test_the_context_cannot_be_deleted_meanwhile(bench: Bench) -> None:
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)
    fault(bench, enter=False)
    vcpu = bench.vcpus[0]
    vcpu.vmpl = 0
    assert vcpu.steps is not None
    next(vcpu.steps)  # VeilMon asks the services, and the host runs another VCPU
    assert bench.call(0, 3, KERNEL_VMSA, vcpu=1).rax == ResultCode.BUSY


@pytest.mark.parametrize("asks", [False, True])
def test_another_vcpus_services_take_it_further(bench: Bench, asks: bool) -> None:
    """An honest host runs them each second, on any VCPU. The answer is VeilMon's, before the kernel goes on. Also if
    `asks`: that VCPU's kernel came to ask them something, for which they wait for VeilMon by then."""
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)
    if asks:
        gpa = bench.register(1)
        body = (SMALL + PAGE).to_bytes(8, "little")
        write_request(bench.kernel, gpa, 4 * PAGE, BlockRequest(Guard.number, PROTECT, body))
    else:
        bench.enter(1, vmpl=1)
    runs: list[bool] = []

    def say(access: RefusedAccess) -> Asking[Verdict]:
        yield from guard_of(bench).context.monitor.read_virtual(0, CODE_AT, 1)
        return access.resume(rip=CODE_AT + 3)

    def on_request(request: int) -> None:
        if request == RUN_SERVICES and bench.vcpus[0].vmpl == 0:
            runs.append(True)
            if len(runs) == 2 and asks:
                # VeilMon has answered what VMPL 1 asked. Of the other VCPU the host runs one step of the services.
                next(bench._service_steps(bench.vcpus[1]))
                assert bench.vcpus[1].service_vmcb.ghcb_gpa == RUN_MONITOR
            elif len(runs) == 2:
                bench.enter(1, vmpl=1)
        assert bench.vcpus[0].vmpl == 0 or request != RUN_KERNEL, "the kernel's access is not decided yet"

    guard_of(bench).say = say
    bench.on_request = on_request
    vmsa = fault(bench)
    assert len(runs) >= 2
    assert not stopped(vmsa)
    assert vmsa.rip == CODE_AT + 3
    if asks:
        bench.on_request = lambda request: None
        bench.enter(1)
        bench.enter(1, vmpl=1)
        assert read_answer(bench.kernel, gpa, 4 * PAGE) == (Status.OK, b"")


def test_unprotected_nothing_is_refused() -> None:
    bench = Bench(services=Recorders, options=Option.UNPROTECTED).boot()
    assert bench.ask(Guard.number, PROTECT, struct.pack("<Q", SMALL)) == (Status.OK, b"")
    bench.kernel.write(SMALL, b"evil")
    assert not guard_of(bench).asked


def test_without_a_guard_nothing_is_asked() -> None:
    bench = Bench(services=Echoes).boot()
    assert bench.monitor.state.hearing is None
    vmsa = fault(bench)
    assert not stopped(vmsa)
    assert vmsa.guest_exit_code == NPF


def test_pages_that_the_service_gives_back(bench: Bench) -> None:
    assert bench.ask(Guard.number, RELEASE, struct.pack("<Q", SMALL)) == (Status.OK, b"")
    bench.kernel.write(SMALL, b"mine")
    # A fault from before, which the host hands on now: the instruction is simply tried again.
    for info in (REFUSED, REFUSED & ~2, REFUSED & ~2 | 1 << 4):
        vmsa = fault(bench, info=info)
        assert not stopped(vmsa)
        assert (vmsa.rip, vmsa.rax) == (CODE_AT, 0x1122334455667788)
    assert not guard_of(bench).asked


def test_pages_that_the_service_gives_back_before_it_is_asked(bench: Bench) -> None:
    """The access was refused while another VCPU's request was served, and waits for that."""
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)
    bench.register(1)
    released: list[Status] = []

    def on_request(request: int) -> None:
        if request == RUN_SERVICES and not released:
            released.append(Status.UNAVAILABLE)
            released[0], _ = bench.ask(Guard.number, RELEASE, struct.pack("<Q", SMALL), vcpu=1)

    bench.on_request = on_request
    vmsa = fault(bench)
    assert released == [Status.OK]
    assert not stopped(vmsa)
    assert (vmsa.rip, vmsa.rax) == (CODE_AT, 0x1122334455667788)
    assert not guard_of(bench).asked


def test_a_right_that_is_there_for_reading_only(bench: Bench) -> None:
    """The service is asked about what is refused still, and about nothing else."""
    guard_of(bench).say = lambda access: Verdict.refuse()
    assert not stopped(fault(bench, info=REFUSED & ~2))
    assert not stopped(fault(bench, info=REFUSED & ~2 | 1 << 4)), "code is executed"
    assert not guard_of(bench).asked
    assert stopped(fault(bench, info=REFUSED & ~2 | 1 << 4, cpl=3)), "but by the supervisor only"
    assert stopped(fault(bench))
    assert len(guard_of(bench).asked) == 2


# Virtual memory


def test_virtual_memory_of_a_kernel_that_waits(bench: Bench) -> None:
    guard = guard_of(bench)
    found: list[bytes | Status] = []
    bench.kernel.write(FREE + 5, b"in a large page")

    def say(access: RefusedAccess) -> Asking[Verdict]:
        for address, length in (
            (0x200005, 15), (SMALL + PAGE - 1, 2), (1 << 30, 1), (1 << 31, 1), (1 << 47, 1), (MONITOR, 1),
            (0x1FF000, PAGE), (SERVICES, 1), (0, PAGE + 1), (0, 0),
        ):  # fmt: skip
            try:
                found.append((yield from guard.context.monitor.read_virtual(0, address, length)))
            except MonitorRefused as refused:
                found.append(refused.status)
        try:
            yield from guard.context.monitor.read_virtual(1, SMALL, 1)
        except MonitorRefused as refused:
            found.append(refused.status)
        return access.resume()

    guard.say = say
    assert not stopped(fault(bench))
    bad = Status.BAD_REQUEST
    assert found[0] == b"in a large page"
    assert [len(item) if isinstance(item, bytes) else item for item in found[1:]] == [
        2, bad, bad, bad, bad, PAGE, bad, bad, bad, Status.NOT_ALLOWED,
    ]  # fmt: skip


def test_virtual_memory_of_a_kernel_whose_call_waits(bench: Bench) -> None:
    """It stands still, too, but there is no access to decide: no service has a question."""
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)
    found: list[object] = []

    def say(access: RefusedAccess) -> Asking[Verdict]:
        assert bench.monitor.domains.vcpus[1].unfinished == FREE
        for vcpu in (1, access.vcpu):
            try:
                found.append((yield from guard_of(bench).context.monitor.read_virtual(vcpu, CODE_AT, 3)))
            except MonitorRefused as refused:
                found.append(refused.status)
        return access.resume()

    def meanwhile(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        if not found:
            fault(bench)
        return bench.carry(request, response, data)

    guard_of(bench).say, bench.on_message = say, meanwhile
    vmsa = bench.vmsa(FREE)
    vmsa.cr3 = PML4 | C_BIT
    # 58019, table 11
    operation = struct.pack("<QI4xQH6xQI4x", FREE + 2 * PAGE, PAGE, FREE + 3 * PAGE, 64, FREE + 4 * PAGE, PAGE)
    bench.kernel.write(FREE + 5 * PAGE, operation.ljust(0x58, b"\0"))
    assert bench.call(1, 0, FREE + 5 * PAGE, vcpu=1).rax == OK
    assert found == [Status.NOT_ALLOWED, bytes.fromhex("488907")]


@pytest.mark.parametrize("table", [MONITOR, SERVICES, 1 << 40])
def test_page_tables_where_the_kernel_has_no_rights(bench: Bench, table: int) -> None:
    """VeilMon must not read its own memory in the kernel's name."""
    found: list[object] = []

    def say(access: RefusedAccess) -> Asking[Verdict]:
        try:
            found.append((yield from guard_of(bench).context.monitor.read_virtual(0, 0, 8)))
        except MonitorRefused as refused:
            found.append(refused.status)
        return Verdict.refuse()

    guard_of(bench).say = say
    fault(bench, cr3=table | C_BIT)
    assert found == [Status.BAD_REQUEST]


# Exceptions


def test_an_exception_for_the_kernel(bench: Bench) -> None:
    handler = 0xFFFFFFFF81234567
    bench.kernel.write(IDT + 13 * 16, gate(handler))
    vmsa = fault(bench, code="8907", rflags=0x10302)
    assert not stopped(vmsa)
    assert (vmsa.rip, vmsa.rsp, vmsa.rflags) == (handler, STACK + 0x800 - 48, 2)
    frame = struct.unpack("<6Q", bench.kernel.read(vmsa.rsp, 48))
    assert frame == (0, CODE_AT, 0x10, 0x10302, STACK + 0x808, 0x18)
    assert bench.kernel.read_u64(SMALL) == 0


def test_a_page_fault_for_the_kernel(bench: Bench) -> None:
    bench.kernel.write(IDT + 14 * 16, gate(0x5000, bits=0x8F00))
    guard_of(bench).say = lambda access: Verdict.inject(VECTOR_PF, 3, 0xFFFF888000001000)
    vmsa = fault(bench)
    assert (vmsa.rip, vmsa.cr2, vmsa.rflags) == (0x5000, 0xFFFF888000001000, 0x202)
    assert bench.kernel.read_u64(vmsa.rsp) == 3


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        (gate(5, bits=0x0E00), {}),
        (gate(5, bits=0x8E01), {}),
        (gate(5, bits=0x8500), {}),
        (gate(5, selector=0x33), {}),
        (gate(5), {"cpl": 3}),
        (gate(5), {"rsp": SMALL + 0x100}),
        (gate(5), {"rsp": SMALL + PAGE + 0x10}),
        (gate(5), {"rsp": SMALL + 0x10}),
        (gate(5), {"rsp": 0}),
        (gate(5), {"rsp": MONITOR}),
        (gate(5), {"cr0": 0x33}),
        (gate(5), {"cr4": 0x1620}),
    ],
)
def test_a_kernel_that_no_exception_reaches(bench: Bench, where: bytes, fields: dict[str, Any]) -> None:
    """It is stopped; nothing is written to its stack, protected pages least of all."""
    bench.kernel.write(IDT + 13 * 16, where)
    guard_of(bench).say = lambda access: Verdict.inject()
    before = bytes(bench.memory.buf[: bench.memory.size])
    vmsa = fault(bench, **fields)
    assert stopped(vmsa)
    assert vmsa.rip == CODE_AT
    around = slice(SMALL - PAGE, SMALL + 2 * PAGE)
    assert bench.view(0).read(around.start, 3 * PAGE) == before[around]


# Snapshots, formats


def test_no_snapshot_while_an_access_is_decided(bench: Bench) -> None:
    fault(bench, enter=False)
    vcpu = bench.vcpus[0]
    vcpu.vmpl = 0
    assert vcpu.steps is not None
    next(vcpu.steps)
    with pytest.raises(SnapshotError):
        bench.monitor.save()


def test_two_guards_of_one_owner() -> None:
    class Second(Guard):
        name, number = "second", 41

    class Both(ServiceDomain):
        service_types = (Guard, Second)

    with pytest.raises(FormatError, match="two services"):
        Both()


_WORDS = st.integers(0, (1 << 64) - 1)
_REGISTERS = st.builds(
    Registers, st.tuples(*[_WORDS] * 16), *[_WORDS] * 10,
)  # fmt: skip


@given(_REGISTERS, _WORDS, _WORDS, st.sampled_from(Owner))
def test_what_is_asked_comes_through(registers: Registers, gpa: int, info: int, owner: Owner) -> None:
    access = RefusedAccess(1, gpa, gpa, info, owner, registers)
    assert RefusedAccess.parse(access.pack()) == access
    verdict = access.resume(rip=7)
    assert Verdict.parse(verdict.pack()) == verdict


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    for kind in (Report, RefusedAccess, Verdict, ReadVirtual):
        try:
            found = kind.parse(data)
        except FormatError:
            continue
        assert kind.parse(found.pack()) == found
