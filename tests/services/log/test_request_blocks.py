# SPDX-License-Identifier: GPL-2.0-or-later
"""What a compromised kernel and host try at VeilS-LOG's request blocks, and at its memory."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.monitor.harness import (
    BLOCK_PAGES,
    BLOCKS,
    FREE,
    FREE_2M,
    LARGE,
    MAILBOX,
    PAGE,
    SERVICE_HEADER,
    SERVICE_MEMORY,
    SERVICE_PARAMETERS,
    SERVICE_VMSAS,
    SMALL,
    Bench,
    kernel_vmsa,
)
from tests.services.log.harness import boot, log, reader, record, records, service
from veil.formats.log import LOG_NUMBER, KernelCall, pack_records
from veil.formats.request_block import BLOCK_HEADER, BlockRequest, read_answer, write_request
from veil.formats.status import Status
from veil.monitor import Option
from veil.monitor.page_book import Owner
from veil.monitor.svsm_call import ResultCode
from veil.remote.errors import VerificationFailed
from veil.services import program
from veil.snp import Permission, RmpViolation
from veil.snp.view import View

OK = (Status.OK, b"")
SIZE = BLOCK_PAGES * PAGE
REGISTER, PROTOCOL = 0, 16


@pytest.fixture
def bench() -> Bench:
    return boot()


def second_vcpu(bench: Bench) -> None:
    bench.kernel.write(SMALL, kernel_vmsa())
    assert bench.create_vcpu(SMALL, SMALL + PAGE, 1) == ResultCode.SUCCESS
    bench.enter(1)


# Request blocks


def test_a_block_that_is_refused_leaves_no_permission_behind(bench: Bench) -> None:
    """Of a block whose last page is shared, or that the host must split first and does not, VMPL 1 gets nothing."""
    assert bench.pvalidate(FREE + PAGE) == (ResultCode.SUCCESS, 1)
    assert bench.call(PROTOCOL, REGISTER, FREE, 2).rax == ResultCode.INVALID_ADDRESS
    assert bench.monitor.book.owner(FREE) == Owner.KERNEL
    bench.check()
    assert bench.call(PROTOCOL, REGISTER, FREE, 1).rax == ResultCode.SUCCESS
    assert bench.view(1).allows(FREE, 3), "what the check looks for"


def test_a_block_that_reaches_into_an_entry_of_2_mib(bench: Bench) -> None:
    bench.host.psmash(FREE)
    gpa = FREE_2M - PAGE
    assert bench.call(PROTOCOL, REGISTER, gpa, 2).rax == ResultCode.SUCCESS
    assert bench.splits == 1
    bench.check()


@pytest.mark.parametrize(
    "gpa", [SERVICE_PARAMETERS, BLOCKS, MAILBOX, SERVICE_HEADER, SERVICE_MEMORY, SERVICE_VMSAS, SERVICE_MEMORY - PAGE]
)
def test_a_block_in_the_logs_memory(bench: Bench, gpa: int) -> None:
    """The service would write its answers there; with the book's word it would do so."""
    for start, pages in ((gpa, 1), (gpa, 16), (gpa - 15 * PAGE, 16)):
        assert bench.call(PROTOCOL, REGISTER, start, pages).rax == ResultCode.INVALID_ADDRESS
        bench.check()
    bench.monitor.book.claim(gpa, PAGE, Owner.KERNEL)
    before = bench.view(0).read(gpa, 64)
    assert bench.call(PROTOCOL, REGISTER, gpa, 1).rax == ResultCode.SUCCESS
    if gpa in (SERVICE_MEMORY, SERVICE_MEMORY - PAGE):
        bench.view(0).write(gpa, struct.pack("<IIHHI", 1, 0, 99, 0, 0))
        bench.enter(0, vmpl=1)
        assert bench.view(0).read(gpa, 64) != before


def test_a_released_block_is_not_served(bench: Bench) -> None:
    """The kernel gives a block up and uses its page for something else that looks like a request."""
    gpa = bench.register()
    assert bench.call(PROTOCOL, REGISTER, 0, 0).rax == ResultCode.SUCCESS
    body = pack_records([record(1)])
    write_request(bench.kernel, gpa, SIZE, BlockRequest(LOG_NUMBER, KernelCall.RECORDS, body))
    before = bench.kernel.read(gpa, PAGE)
    bench.enter(0, vmpl=1)
    assert bench.kernel.read(gpa, PAGE) == before
    assert service(bench).store.next == 1
    with pytest.raises(RmpViolation):
        bench.view(1).read(gpa, 8)
    # As a registered block the same bytes are a request.
    bench.register()
    bench.enter(0, vmpl=1)
    assert read_answer(bench.kernel, gpa, SIZE) == OK
    assert service(bench).store.next == 2


def test_a_released_block_for_another_vcpu() -> None:
    bench = boot(vcpus=2)
    second_vcpu(bench)
    gpa = bench.register()
    assert bench.call(PROTOCOL, REGISTER, gpa, BLOCK_PAGES, vcpu=1).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(PROTOCOL, REGISTER, gpa + PAGE, 1, vcpu=1).rax == ResultCode.INVALID_ADDRESS, "a part of it"
    assert bench.call(PROTOCOL, REGISTER, 0, 0).rax == ResultCode.SUCCESS
    assert bench.call(PROTOCOL, REGISTER, gpa, BLOCK_PAGES, vcpu=1).rax == ResultCode.SUCCESS
    write_request(bench.kernel, gpa, SIZE, BlockRequest(LOG_NUMBER, KernelCall.HEARTBEAT, b""))
    bench.enter(0, vmpl=1)
    assert read_answer(bench.kernel, gpa, SIZE) is None, "it is VCPU 1's now"
    bench.enter(1, vmpl=1)
    assert read_answer(bench.kernel, gpa, SIZE) is not None
    bench.check()


class Turncoat:
    """Another VCPU of the kernel, which changes a block after each read of VMPL 1's."""

    def __init__(self, bench: Bench, gpa: int, monkeypatch: pytest.MonkeyPatch, writes: dict[int, bytes]) -> None:
        self.reads: list[tuple[int, int]] = []
        honest = View.read

        def read(view: View, at: int, length: int, **more: Any) -> bytes:
            data = honest(view, at, length, **more)
            if view.vmpl == 1 and gpa <= at < gpa + SIZE:
                self.reads.append((at - gpa, length))
                for offset, content in writes.items():
                    bench.kernel.write(gpa + offset, content)
            return data

        monkeypatch.setattr(View, "read", read)


def careless_take(memory: Any, gpa: int, size: int) -> BlockRequest | None:
    """What `take_request` must not be: the length is checked in the block, and read again for use."""
    pending, _, _, _, length = struct.unpack("<IIHHI", memory.read(gpa, 16))
    if not pending or length > size - BLOCK_HEADER:
        return None
    _, _, number, call, length = struct.unpack("<IIHHI", memory.read(gpa, 16))
    return BlockRequest(number, call, memory.read(gpa + BLOCK_HEADER, length))


def test_a_block_is_read_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gpa = bench.register()
    body = pack_records([record(1)])
    longer = struct.pack("<IIHHI", 0, 0, LOG_NUMBER, 0, SIZE - BLOCK_HEADER + PAGE)
    secret = b"VMPL 3 has not written this"
    write_request(bench.kernel, gpa, SIZE, BlockRequest(LOG_NUMBER, KernelCall.RECORDS, body))
    other = Turncoat(bench, gpa, monkeypatch, {0: longer})
    bench.enter(0, vmpl=1)
    monkeypatch.undo()
    assert [at for at, _ in other.reads] == [0]
    assert [item.body for item in list(reader(bench).fetch())[1:]] == [body]

    # Read twice, the block makes the service take what lies behind it, here memory of its own kind.
    bench.view(0).rmpadjust(gpa + SIZE, vmpl=1, permissions=bench.view(0).rmpquery(gpa, vmpl=1).permissions)
    bench.view(0).write(gpa + SIZE, secret)
    write_request(bench.kernel, gpa, SIZE, BlockRequest(LOG_NUMBER, KernelCall.RECORDS, body))
    Turncoat(bench, gpa, monkeypatch, {0: longer})
    monkeypatch.setattr(program, "take_request", careless_take)
    bench.enter(0, vmpl=1)
    monkeypatch.undo()
    assert secret in list(reader(bench).fetch())[-1].body


def test_a_host_that_takes_the_block_away_while_it_is_served(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may do so at any instruction: the domain lives on, whatever was wrong with the request."""
    for length in (8, SIZE):
        gpa = bench.register()
        bench.kernel.write(gpa, struct.pack("<IIHHI", 1, 0, LOG_NUMBER, KernelCall.RECORDS, length))
        honest = View.read

        def read(view: View, at: int, count: int, *, gpa: int = gpa, honest: Any = honest, **more: Any) -> bytes:
            data: bytes = honest(view, at, count, **more)
            if view.vmpl == 1 and at == gpa:
                assert bench.host.rmpupdate(gpa, assigned=False) == 0
            return data

        monkeypatch.setattr(View, "read", read)
        bench.enter(0, vmpl=1)
        monkeypatch.undo()
        assert bench.host.rmpupdate(gpa, assigned=True) == 0
        bench.view(0).pvalidate(gpa)
        bench.view(0).rmpadjust(gpa, vmpl=3, permissions=Permission.ALL)
        assert bench.call(PROTOCOL, REGISTER, 0, 0).rax == ResultCode.SUCCESS
    assert log(bench, 1) == OK
    assert records(list(reader(bench).fetch()))[-1] == record(1)


def test_a_host_that_takes_the_logs_memory_away(bench: Bench) -> None:
    """What was not kept is not answered: an untouched answer would read as success, and the record would be lost."""
    gpa = bench.register()
    bench.host.psmash(SERVICE_MEMORY & -LARGE)
    assert bench.host.rmpupdate(SERVICE_MEMORY, assigned=False) == 0
    write_request(bench.kernel, gpa, SIZE, BlockRequest(LOG_NUMBER, KernelCall.RECORDS, pack_records([record(1)])))
    for _ in range(3):
        bench.enter(0, vmpl=1)
        assert bench.vcpus[0].vmpl == 3
        assert read_answer(bench.kernel, gpa, SIZE) is None
    assert service(bench).store.next == 1
    # Once the memory is the service's again, the same request is served, once.
    assert bench.host.rmpupdate(SERVICE_MEMORY, assigned=True) == 0
    bench.view(0).pvalidate(SERVICE_MEMORY)
    bench.view(0).rmpadjust(SERVICE_MEMORY, vmpl=1, permissions=Permission.RW)
    for _ in range(2):
        bench.enter(0, vmpl=1)
        assert read_answer(bench.kernel, gpa, SIZE) == OK
    assert service(bench).store.next == 2


def test_unprotected_log_can_be_rewritten_before_it_is_hashed() -> None:
    """The counter-test of everything that stands on the memory's protection, with a rewritten length."""
    bench = boot(options=Option.UNPROTECTED)
    log(bench, 1)
    log(bench, 2)
    second = SERVICE_MEMORY + 24 + len(service(bench).store._bytes(24, 24 + 8 + len(record(1).text)))
    assert bench.kernel.read(second, 8) == struct.pack("<Q", 2)
    bench.kernel.write(second, struct.pack("<Q", 7))
    with pytest.raises(VerificationFailed, match="entry 7 came where 2 was due"):
        list(reader(bench).fetch())


def test_two_vcpus_at_once() -> None:
    """Each VCPU's request is whole, whichever is served first, and one that floods does not hold up the other."""
    bench = boot(vcpus=2)
    second_vcpu(bench)
    blocks = [bench.register(vcpu) for vcpu in range(2)]
    for turn in range(50):
        for vcpu in (0, 1):
            body = pack_records([record(turn * 2 + vcpu)] * (40 if vcpu else 1))
            write_request(bench.kernel, blocks[vcpu], SIZE, BlockRequest(LOG_NUMBER, KernelCall.RECORDS, body))
        for vcpu in (0, 1) if turn % 2 else (1, 0):
            bench.enter(vcpu, vmpl=1)
            assert read_answer(bench.kernel, blocks[vcpu], SIZE) == OK
        reading = reader(bench)
        entries = [item.body for item in list(reading.fetch())]
        assert {len(body) for body in entries[-2:]} == {len(body), len(body) // 40} or turn < 5
        reading.acknowledge()
