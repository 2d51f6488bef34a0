# SPDX-License-Identifier: GPL-2.0-or-later
"""The services' domain at VMPL 1: request blocks, the mailbox, a hostile kernel and a hostile host."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.monitor.echo import Echo, Services
from tests.monitor.harness import (
    BLOCK,
    BLOCK_PAGES,
    BLOCKS,
    FREE,
    KERNEL_CAA,
    KERNEL_VMSA,
    MAILBOX,
    MONITOR,
    PAGE,
    RAM,
    SERVICE_HEADER,
    SERVICE_MEMORY,
    SERVICE_VMSAS,
    SERVICES,
    SMALL,
    Bench,
    Terminated,
    kernel_vmsa,
    parameters,
    with_services,
)
from tests.monitor.wire import Wire
from veil.formats.errors import FormatError
from veil.formats.request_block import (
    BLOCK_HEADER,
    BlockMemory,
    BlockRequest,
    read_answer,
    take_request,
    write_answer,
    write_request,
)
from veil.formats.roles import Role
from veil.formats.service_domain import OUTBOX_SIZE
from veil.formats.status import Status
from veil.formats.termination import MonitorReason
from veil.monitor import MonitorError, Option, Owner, VeilMon
from veil.monitor.svsm_call import ResultCode
from veil.remote.channel.client import ChannelClient, RequestFailed
from veil.services.parameters import KernelSegment, ServiceParameters
from veil.snp import RmpViolation

REGISTER, PROTOCOL = 0, 16
SIZE = BLOCK_PAGES * PAGE
OK = ResultCode.SUCCESS


@pytest.fixture
def bench() -> Bench:
    return Bench(vcpus=2, services=Services).boot()


def test_each_vcpu_asks_for_itself(bench: Bench) -> None:
    assert bench.ask(7, 0, b"one") == (Status.OK, b"\0one")
    assert bench.ask(7, 0, b"") == (Status.OK, b"\0")
    second = SMALL
    bench.kernel.write(second, kernel_vmsa())
    assert bench.create_vcpu(second, second + PAGE, 1) == OK
    bench.enter(1)
    assert bench.ask(7, 0, b"two", vcpu=1) == (Status.OK, b"\1two")
    bench.check()


def test_answers_that_are_none(bench: Bench) -> None:
    assert bench.ask(8, 0, b"x") == (Status.UNKNOWN_SERVICE, b"")
    assert bench.ask(0, 0, b"x") == (Status.UNKNOWN_SERVICE, b""), "what VeilMon alone may ask"
    assert bench.ask(7, 1, b"x") == (Status.FULL, b"")


def test_one_switch_and_no_word_to_the_monitor(bench: Bench) -> None:
    bench.ask(7, 0, b"x")
    bench.log.clear()
    bench.ask(7, 0, b"x")
    assert bench.log == [3 << 32 | 0x016]


def test_services_say_who_they_are() -> None:
    bench = Bench(services=Services).boot()
    (info,) = bench.monitor.state.services
    assert (info.name, info.number, info.guid, info.manifest) == ("echo", 7, Echo.guid, b"it echoes")
    assert Bench().boot().monitor.state.services == []
    assert Bench().boot().call(PROTOCOL, REGISTER, FREE, 1).rax == ResultCode.UNSUPPORTED_PROTOCOL


# Registering blocks


@pytest.mark.parametrize(
    ("gpa", "pages", "code"),
    [
        (FREE + 8, 1, ResultCode.INVALID_PARAMETER),
        (FREE, 17, ResultCode.INVALID_PARAMETER),
        (FREE, 1 << 40, ResultCode.INVALID_PARAMETER),
        (MONITOR, 1, ResultCode.INVALID_ADDRESS),
        (MONITOR - PAGE, 2, ResultCode.INVALID_ADDRESS),
        (SERVICES, 1, ResultCode.INVALID_ADDRESS),
        (MAILBOX, 1, ResultCode.INVALID_ADDRESS),
        (BLOCKS, 1, ResultCode.INVALID_ADDRESS),
        (SERVICE_HEADER, 1, ResultCode.INVALID_ADDRESS),
        (KERNEL_VMSA, 1, ResultCode.INVALID_ADDRESS),
        (KERNEL_CAA, 1, ResultCode.INVALID_ADDRESS),
        (RAM - PAGE, 2, ResultCode.INVALID_ADDRESS),
        (RAM, 1, ResultCode.INVALID_ADDRESS),
        (1 << 63, 1, ResultCode.INVALID_ADDRESS),
    ],
)
def test_memory_that_is_not_the_kernels(bench: Bench, gpa: int, pages: int, code: ResultCode) -> None:
    before = bench.rmp.dump()
    assert bench.call(PROTOCOL, REGISTER, gpa, pages).rax == code
    assert bench.rmp.dump() == before
    assert bench.monitor.state.blocks == {}
    bench.check()


def test_shared_memory_is_no_block(bench: Bench) -> None:
    assert bench.pvalidate(FREE) == (OK, 1)
    assert bench.call(PROTOCOL, REGISTER, FREE, 1).rax == ResultCode.INVALID_ADDRESS
    bench.check()


def test_a_block_stays_validated_memory(bench: Bench) -> None:
    """Else the host could put another page in its place while VMPL 1 may write there, or it could become a VMSA."""
    gpa = bench.register()
    assert bench.pvalidate(gpa)[0] == ResultCode.INVALID_ADDRESS
    bench.kernel.write(gpa, kernel_vmsa())
    assert bench.call(0, 2, gpa, SMALL, 1).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(0, 0, gpa).rax == ResultCode.INVALID_ADDRESS, "no calling area either"
    assert bench.monitor.book.owner(gpa) == Owner.BLOCK
    bench.check()


def test_another_block_and_none(bench: Bench) -> None:
    first = bench.register()
    assert bench.call(PROTOCOL, REGISTER, FREE, 2).rax == OK
    assert not bench.view(1).allows(first, 1)
    assert bench.monitor.book.owner(first) == Owner.KERNEL
    assert bench.pvalidate(first | 0)[0] == OK
    assert bench.ask(7, 0, b"x") == (Status.OK, b"\0x")
    assert bench.call(PROTOCOL, REGISTER, 0, 0).rax == OK
    assert not bench.view(1).allows(FREE, 1)
    bench.enter(0, vmpl=1)  # nothing to do
    bench.check()


def test_the_same_block_for_two_vcpus(bench: Bench) -> None:
    second = SMALL
    bench.kernel.write(second, kernel_vmsa())
    assert bench.create_vcpu(second, second + PAGE, 1) == OK
    gpa = bench.register()
    assert bench.call(PROTOCOL, REGISTER, gpa, 1, vcpu=1).rax == ResultCode.INVALID_ADDRESS


def test_unknown_calls(bench: Bench) -> None:
    assert bench.call(PROTOCOL, 1, FREE, 1).rax == ResultCode.UNSUPPORTED_CALL


# What the kernel writes into them


def test_lengths_out_of_range(bench: Bench) -> None:
    gpa = bench.register()
    for length in (SIZE - BLOCK_HEADER + 1, 0xFFFFFFFF, 1 << 31):
        bench.kernel.write(gpa, struct.pack("<IIHHI", 1, 0, 7, 0, length))
        bench.enter(0, vmpl=1)
        assert read_answer(bench.kernel, gpa, SIZE) == (Status.BAD_REQUEST, b"")
    assert struct.unpack("<Q", bench.view(1).read(SERVICE_MEMORY, 8))[0] == 0


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(min_size=BLOCK_HEADER, max_size=200))
def test_any_block(data: bytes) -> None:
    bench = Bench(services=Services).boot()
    gpa = bench.register()
    bench.kernel.write(gpa, data)
    bench.enter(0, vmpl=1)
    bench.check()


@pytest.mark.parametrize("length", [5, PAGE + 5])
def test_a_request_that_changes_while_it_is_copied(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another VCPU makes it longer than the block after its header was read: the copied header counts."""
    bench = Bench(services=Services).boot()
    gpa = bench.register()
    write_request(bench.kernel, gpa, SIZE, BlockRequest(7, 0, b"a" * length))
    view_type = type(bench.view(1))
    honest = view_type.read

    def read(self: Any, at: int, count: int, **more: Any) -> bytes:
        data = honest(self, at, count, **more)
        if at == gpa and self.vmpl == 1:
            bench.kernel.write(gpa, struct.pack("<IIHHI", 1, 0, 7, 0, 0xFFFFFFFF))
            bench.kernel.write(gpa + BLOCK_HEADER, b"b" * length)
        return data

    monkeypatch.setattr(view_type, "read", read)
    bench.enter(0, vmpl=1)
    monkeypatch.undo()
    # What was not in the header's page is copied after that, once too.
    at_first = min(length, PAGE - BLOCK_HEADER)
    assert read_answer(bench.kernel, gpa, SIZE) == (Status.OK, b"\0" + b"a" * at_first + b"b" * (length - at_first))


def test_a_request_that_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: looked at the first time, used the second."""
    bench = Bench(services=Services).boot()
    gpa = bench.register()
    write_request(bench.kernel, gpa, SIZE, BlockRequest(7, 0, b"checked"))

    def take(memory: BlockMemory, at: int, size: int) -> BlockRequest | None:
        first = take_request(memory, at, size)
        if first is not None and at == gpa:
            write_request(bench.kernel, gpa, SIZE, BlockRequest(7, 0, b"changed"))
        return take_request(memory, at, size)

    monkeypatch.setattr("veil.services.program.take_request", take)
    bench.enter(0, vmpl=1)
    assert read_answer(bench.kernel, gpa, SIZE) == (Status.OK, b"\0changed")


def test_the_kernel_says_that_it_is_an_owner(bench: Bench) -> None:
    """The user's fields mean something in the mailbox only, which the kernel cannot reach."""
    gpa = bench.register()
    write_request(bench.kernel, gpa, SIZE, BlockRequest(0, 0, b"", 0, bytes(32), Role.OWNER))
    bench.enter(0, vmpl=1)
    assert read_answer(bench.kernel, gpa, SIZE) == (Status.UNKNOWN_SERVICE, b"")
    for at in (MAILBOX, BLOCKS, SERVICE_HEADER, SERVICE_MEMORY, SERVICE_VMSAS):
        with pytest.raises(RmpViolation):
            bench.kernel.read(at, 8)
        with pytest.raises(RmpViolation):
            bench.kernel.write(at, bytes(8))
    open_to_all = Bench(services=Services, options=Option.UNPROTECTED).boot()
    open_to_all.kernel.write(SERVICE_MEMORY, b"forged")
    assert open_to_all.view(1).read(SERVICE_MEMORY, 6) == b"forged"


def test_services_cannot_change_their_program_or_reach_the_monitor(bench: Bench) -> None:
    service = bench.view(1)
    for gpa in (SERVICE_HEADER, MONITOR, KERNEL_VMSA, SERVICE_VMSAS, FREE):
        with pytest.raises(RmpViolation):
            service.write(gpa, bytes(8))
    assert service.read(SERVICE_HEADER, 8)


def test_a_kernel_that_always_asks_keeps_no_user_waiting(bench: Bench) -> None:
    gpa = bench.register()
    with ChannelClient(Wire(bench)) as client:
        for number in range(5):
            write_request(bench.kernel, gpa, SIZE, BlockRequest(7, 0, b"me first"))
            body = b"user %d" % number
            assert client.request(Echo.guid, 0, body) == body


# The host


def test_host_that_does_not_run_the_domain(bench: Bench) -> None:
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == 1 << 32 | 0x016 else None
    with ChannelClient(Wire(bench)) as client:
        with pytest.raises(RequestFailed, match="does not run the services"):
            client.request(Echo.guid, 0, b"x")
        # What was not served then is not served later, when somebody else waits.
        bench.on_request = lambda request: None
        assert client.request(Echo.guid, 0, b"other") == b"other"
    assert bench.ask(7, 0, b"kernel") == (Status.OK, b"\0kernel")


def test_host_that_comes_back_without_having_run_it(bench: Bench) -> None:
    bench.on_request = lambda request: 0x017 if request == 1 << 32 | 0x016 else None
    with ChannelClient(Wire(bench)) as client, pytest.raises(RequestFailed, match="does not run the services"):
        client.request(Echo.guid, 0, b"x")


def test_host_that_runs_it_without_a_request(bench: Bench) -> None:
    bench.register()
    for _ in range(3):
        bench.enter(0, vmpl=1)
        assert bench.vcpus[0].vmpl == 3
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == 3 << 32 | 0x016 else None
    bench.enter(0, vmpl=1)
    assert bench.vcpus[0].parked


def test_an_old_refusal_does_not_hold_up_a_request(bench: Bench) -> None:
    """The host refused to run the kernel's level when there was none yet; then the kernel comes and asks."""
    gpa = bench.register()
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == 3 << 32 | 0x016 else None
    vcpu = bench.vcpus[0]
    vcpu.vmpl = 1
    next(bench._service_steps(vcpu))
    bench._exit(vcpu, 1)
    bench.on_request = lambda request: None
    write_request(bench.kernel, gpa, SIZE, BlockRequest(7, 0, b"x"))
    bench.enter(0, vmpl=1)
    assert not vcpu.parked
    assert read_answer(bench.kernel, gpa, SIZE) == (Status.OK, b"\0x")


def test_host_that_took_a_block_away(bench: Bench) -> None:
    gpa = bench.register()
    write_request(bench.kernel, gpa, SIZE, BlockRequest(7, 0, b"x"))
    assert bench.host.rmpupdate(gpa, assigned=False) == 0
    bench.enter(0, vmpl=1)
    assert bench.vcpus[0].vmpl == 3
    with ChannelClient(Wire(bench)) as client:
        assert client.request(Echo.guid, 0, b"still") == b"still"


def test_services_that_do_not_start() -> None:
    bench = Bench(services=Services)
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == 1 << 32 | 0x016 else None
    with pytest.raises(Terminated) as caught:
        bench.boot()
    assert caught.value.args == (5, MonitorReason.BAD_SERVICES)
    with pytest.raises(FormatError, match="no memory left"):
        Bench(services=Services, settings={"echo": {"pages": 1000}}).boot()


# Snapshots and parameters


def test_snapshot(bench: Bench) -> None:
    bench.ask(7, 0, b"x")
    monitor, services = VeilMon(), Services()
    monitor.restore(bench.monitor.save())
    assert bench.services is not None
    services.restore(bench.services.save())
    bench.resume(monitor, services)
    assert bench.ask(7, 0, b"y") == (Status.OK, b"\0y")
    with ChannelClient(Wire(bench)) as client:
        assert client.request(Echo.guid, 1) == struct.pack("<Q", 2)
    bench.check()


@pytest.mark.parametrize(
    "changes",
    [
        {"service_code": (SERVICES - PAGE, PAGE)}, {"mailbox_gpa": MONITOR}, {"mailbox_size": 0}, {"mailbox_size": 8},
        {"mailbox_size": OUTBOX_SIZE},
        {"blocks_gpa": MAILBOX}, {"blocks_gpa": RAM}, {"service_vmsas_gpa": SERVICES},
        {"service_vmsas_gpa": MONITOR + 8}, {"service_code": (MAILBOX, PAGE)},
    ],
)  # fmt: skip
def test_bad_parameters(changes: dict[str, Any]) -> None:
    from veil.monitor import MonitorParameters

    MonitorParameters.parse(bytes(with_services()))
    MonitorParameters.parse(bytes(parameters()))
    with pytest.raises(MonitorError) as caught:
        MonitorParameters.parse(bytes(with_services(**changes)))
    assert caught.value.reason == MonitorReason.BAD_PARAMETERS


def test_service_parameters() -> None:
    fields = {"mailbox_gpa": PAGE, "mailbox_size": PAGE, "blocks_gpa": 0, "memory_gpa": PAGE, "memory_size": PAGE}
    kernel = [KernelSegment(0xFFFFFFFF81000000, 0x1000000, 5000), KernelSegment(0, 0x3000000, PAGE)]
    good = ServiceParameters.make({"log": {"full": "halt"}}, kernel, vcpus=1, **fields)
    assert ServiceParameters.parse(bytes(good)).settings == {"log": {"full": "halt"}}
    assert ServiceParameters.parse(bytes(good)).kernel == tuple(kernel)
    with pytest.raises(FormatError, match="at most"):
        ServiceParameters.make({"log": {"x": "y" * 4000}}, (), vcpus=1, **fields)
    with pytest.raises(FormatError, match="8 segments"):
        ServiceParameters.make({}, kernel * 5, vcpus=1, **fields)
    for data in (b"", bytes(4096), bytes(ServiceParameters.make({}, (), vcpus=0, **fields)),
                 bytes(ServiceParameters.make({}, (), vcpus=1, **{**fields, "memory_gpa": 8})),
                 bytes(ServiceParameters.make({}, [KernelSegment(0, 8, PAGE)], vcpus=1, **fields))):  # fmt: skip
        with pytest.raises(FormatError):
            ServiceParameters.parse(data)


class _Memory:
    def __init__(self) -> None:
        self.data = bytearray(SIZE)

    def read(self, gpa: int, length: int, /) -> bytes:
        return bytes(self.data[gpa : gpa + length])

    def write(self, gpa: int, data: bytes, /) -> None:
        self.data[gpa : gpa + len(data)] = data


@given(
    st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=100),
    st.none() | st.binary(min_size=32, max_size=32), st.sampled_from(Role), st.sampled_from(Status),
)  # fmt: skip
def test_blocks_carry_what_was_put_in(
    service: int, call: int, body: bytes, key: bytes | None, role: Role, status: Status
) -> None:
    memory = _Memory()
    request = BlockRequest(service, call, body, 3, key, role)
    assert take_request(memory, 0, SIZE) is None
    write_request(memory, 0, SIZE, request)
    assert read_answer(memory, 0, SIZE) is None
    assert take_request(memory, 0, SIZE) == request
    assert read_answer(memory, 0, SIZE) is None
    write_answer(memory, 0, SIZE, status, body)
    assert take_request(memory, 0, SIZE) is None
    assert read_answer(memory, 0, SIZE) == (status, body)


@given(st.lists(st.integers(0, 1 << 40).map(lambda page: page * PAGE), max_size=9, unique=True), st.binary(max_size=9))
def test_blocks_carry_pages_by_reference(pages: list[int], body: bytes) -> None:
    memory = _Memory()
    request = BlockRequest(1, 0, body, pages=tuple(pages), ticket=7)
    write_request(memory, 0, SIZE, request)
    assert take_request(memory, 0, SIZE) == request


@pytest.mark.parametrize("pages", [(PAGE, PAGE), (PAGE, 0, PAGE), (PAGE + 1,), (PAGE, 2 * PAGE - 8)])
def test_pages_by_reference_that_cannot_be(pages: tuple[int, ...]) -> None:
    memory = _Memory()
    write_request(memory, 0, SIZE, BlockRequest(1, 0, b"", pages=pages))
    with pytest.raises(FormatError, match="whole pages, each named once"):
        take_request(memory, 0, SIZE)
    write_request(memory, 0, SIZE, BlockRequest(1, 0, b"", pages=(PAGE, 0)))
    assert take_request(memory, 0, SIZE) == BlockRequest(1, 0, b"", pages=(PAGE, 0))


def test_more_pages_than_the_request_holds() -> None:
    memory = _Memory()
    write_request(memory, 0, SIZE, BlockRequest(1, 0, b"", pages=(PAGE,)))
    memory.write(0x38, struct.pack("<I", 2))
    with pytest.raises(FormatError, match="names 2 pages"):
        take_request(memory, 0, SIZE)


def test_what_does_not_fit() -> None:
    memory = _Memory()
    with pytest.raises(FormatError):
        write_request(memory, 0, SIZE, BlockRequest(1, 0, bytes(SIZE - BLOCK_HEADER + 1)))
    with pytest.raises(FormatError):
        write_answer(memory, 0, SIZE, Status.OK, bytes(SIZE))
    memory.write(4, struct.pack("<I", 99))
    with pytest.raises(FormatError):
        read_answer(memory, 0, SIZE)


assert BLOCK % PAGE == 0
