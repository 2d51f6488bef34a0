# SPDX-License-Identifier: GPL-2.0-or-later
"""Services whose requests wait for VeilMon: their mistakes, and hosts and kernels that make use of the time."""

from __future__ import annotations

import struct

import pytest

from tests.monitor.harness import FREE, PAGE, SMALL, Bench, kernel_vmsa
from tests.monitor.keeper import ENDLESS, MISTAKES, MOVE, NOT_TEXT, NUMBER, PEEK, RESTRICT, Keeper, Services, moved
from tests.monitor.wire import Wire
from veil.formats.request_block import BlockRequest, read_answer, write_request
from veil.formats.status import Status
from veil.monitor import Owner
from veil.monitor.svsm_call import ResultCode
from veil.remote.channel.client import ChannelClient, RequestFailed
from veil.services import program
from veil.snp import SnapshotError
from veil.snp.rmp import Permission

OK = ResultCode.SUCCESS
RUN_MONITOR = 0x016


#: so often a request may ask here: each time takes a turn of VeilMon
MAX_ASKS = 16


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(program, "MAX_ASKS", MAX_ASKS)
    return Bench(vcpus=2, services=Services).boot()


# A service's mistakes are its own


@pytest.mark.parametrize("call", MISTAKES)
def test_a_mistake_is_not_the_kernels_and_ends_nothing(bench: Bench, call: int) -> None:
    assert bench.ask(NUMBER, call) == (Status.UNAVAILABLE, b""), "and no word of what went wrong inside"
    assert bench.services is not None
    assert [name for name, _ in bench.services.mistakes] == ["keeper"]
    assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, Permission.ALL))) == (Status.OK, b"done")


@pytest.mark.parametrize("call", MISTAKES)
def test_a_mistake_is_not_the_users_and_ends_nothing(bench: Bench, call: int) -> None:
    with ChannelClient(Wire(bench)) as client:
        with pytest.raises(RequestFailed, match="'the service keeper failed'") as caught:
            client.request(Keeper.guid, call)
        assert caught.value.status == Status.UNAVAILABLE
        assert client.request(Keeper.guid, RESTRICT, bytes((Owner.KERNEL, Permission.ALL))) == b"done"
    assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, Permission.ALL))) == (Status.OK, b"done")


def test_a_refusal_whose_text_cannot_be_sent(bench: Bench) -> None:
    """A kernel has files with any names; that a service names one must not end the domain."""
    assert bench.ask(NUMBER, NOT_TEXT) == (Status.BAD_REQUEST, b"")
    with ChannelClient(Wire(bench)) as client, pytest.raises(RequestFailed, match=r"no such file: .*udcff"):
        client.request(Keeper.guid, NOT_TEXT)


def test_a_request_asks_no_more_than_so_often(bench: Bench) -> None:
    bench.register()
    bench.log.clear()
    bench.ask(NUMBER, ENDLESS)
    assert bench.log.count(RUN_MONITOR) == MAX_ASKS


# A host that runs them as it likes


def _second_kernel(bench: Bench) -> None:
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)


def _leave_waiting(bench: Bench, body: bytes) -> int:
    """VCPU 0's request asks VeilMon, which the host does not run; returns the block."""
    gpa = bench.register()
    write_request(bench.kernel, gpa, 4 * PAGE, BlockRequest(NUMBER, MOVE, body))
    vcpu = bench.vcpus[0]
    vcpu.vmpl = 1
    next(bench._service_steps(vcpu))
    assert vcpu.service_vmcb.ghcb_gpa == RUN_MONITOR
    vcpu.service_vmcb.ghcb_gpa = 0x017
    vcpu.vmpl = 3
    assert read_answer(bench.kernel, gpa, 4 * PAGE) is None
    return gpa


def test_a_host_that_does_not_run_veilmon(bench: Bench) -> None:
    """The kernel goes on and asks again; nothing is served twice."""
    bench.register()
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == RUN_MONITOR else None
    gpa = bench.monitor.state.blocks[0][0]
    write_request(bench.kernel, gpa, 4 * PAGE, BlockRequest(NUMBER, MOVE, moved(SMALL)))
    for _ in range(3):
        bench.enter(0, vmpl=1)
        assert bench.vcpus[0].vmpl == 3
        assert read_answer(bench.kernel, gpa, 4 * PAGE) is None
    bench.on_request = lambda request: None
    bench.enter(0, vmpl=1)
    assert read_answer(bench.kernel, gpa, 4 * PAGE) == (Status.OK, b"done")
    assert bench.monitor.book.owner(SMALL) == Owner.KERNEL_CODE


def test_another_vcpu_takes_it_further(bench: Bench) -> None:
    _second_kernel(bench)
    gpa = _leave_waiting(bench, moved(SMALL))
    assert bench.ask(NUMBER, MOVE, moved(SMALL + PAGE), vcpu=1) == (Status.OK, b"done")
    assert read_answer(bench.kernel, gpa, 4 * PAGE) == (Status.OK, b"done")
    assert bench.monitor.book.owner(SMALL) == bench.monitor.book.owner(SMALL + PAGE) == Owner.KERNEL_CODE


def test_users_are_answered_while_a_handler_waits(bench: Bench) -> None:
    gpa = _leave_waiting(bench, moved(SMALL))
    with ChannelClient(Wire(bench)) as client:
        assert client.request(Keeper.guid, RESTRICT, bytes((Owner.KERNEL, Permission.ALL))) == b"done"
    assert read_answer(bench.kernel, gpa, 4 * PAGE) == (Status.OK, b"done")


def test_an_answer_does_not_go_to_another_request(bench: Bench) -> None:
    """The kernel gave up and asked something else: what VeilMon then answers to the first is not for the second."""
    gpa = _leave_waiting(bench, moved(SMALL))
    bench.kernel.write(SMALL + PAGE, b"8 bytes!")
    body = struct.pack("<Q", SMALL + PAGE)
    write_request(bench.kernel, gpa, 4 * PAGE, BlockRequest(NUMBER, PEEK, body, ticket=1))
    # VMPL 1 asked VeilMon in vain, so it lets the kernel run; then it asks again.
    bench.enter(0, vmpl=1)
    bench.enter(0, vmpl=1)
    assert read_answer(bench.kernel, gpa, 4 * PAGE) == (Status.UNAVAILABLE, b""), "VMPL 1 has no rights there"


def test_a_block_that_goes_while_its_request_waits(bench: Bench) -> None:
    gpa = _leave_waiting(bench, moved(SMALL))
    assert bench.call(16, 0, 0, 0).rax == OK
    bench.enter(0, vmpl=1)
    assert read_answer(bench.kernel, gpa, 4 * PAGE) is None
    assert bench.ask(NUMBER, MOVE, moved(SMALL + PAGE)) == (Status.OK, b"done")


def test_a_kernels_call_while_veilmon_is_asked(bench: Bench) -> None:
    """VeilMon serves the outbox, has the services run, and still hears the kernel that comes in between."""
    _leave_waiting(bench, moved(SMALL))
    assert bench.call(0, 6, 0 << 32 | 1).rax == OK
    assert bench.monitor.book.owner(SMALL) == Owner.KERNEL_CODE


def test_no_snapshot_while_a_handler_waits(bench: Bench) -> None:
    _leave_waiting(bench, moved(SMALL))
    assert bench.services is not None
    with pytest.raises(SnapshotError):
        bench.services.save()
    bench.enter(0, vmpl=1)
    bench.enter(0, vmpl=1)
    bench.services.save()
