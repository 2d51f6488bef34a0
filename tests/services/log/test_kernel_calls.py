# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel may call, and what it cannot reach."""

from __future__ import annotations

import struct

import pytest

from tests.monitor.harness import BLOCK, PAGE, SERVICE_MEMORY, Bench
from tests.services.log.harness import boot, log, reader, record, records
from veil.formats.errors import FormatError
from veil.formats.log import LOG_NUMBER, AuditRecord, EntryKind, KernelCall, UserCall, pack_records, parse_records
from veil.formats.request_block import BLOCK_HEADER, BlockRequest, read_answer, write_request
from veil.formats.status import Status
from veil.monitor import Option
from veil.remote.errors import VerificationFailed
from veil.remote.log.audit_lines import audit_lines
from veil.snp import RmpViolation

OK = (Status.OK, b"")
REGISTER, PROTOCOL = 0, 16


@pytest.fixture
def bench() -> Bench:
    return boot()


def test_kernel_with_other_words(bench: Bench) -> None:
    assert bench.ask(LOG_NUMBER, 77, b"x") == (Status.UNKNOWN_CALL, b"")
    # What is not a record is kept as it is: its reader says so.
    assert bench.ask(LOG_NUMBER, KernelCall.RECORDS, b"nonsense") == OK
    (entry,) = list(reader(bench).fetch())[1:]
    with pytest.raises(FormatError):
        parse_records(entry.body)
    assert list(audit_lines(entry)) == []


def test_the_kernel_cannot_reach_the_entries(bench: Bench) -> None:
    log(bench, 1)
    for gpa in (SERVICE_MEMORY, SERVICE_MEMORY + 100):
        with pytest.raises(RmpViolation):
            bench.kernel.read(gpa, 8)
        with pytest.raises(RmpViolation):
            bench.kernel.write(gpa, bytes(8))
    assert records(list(reader(bench).fetch())) == [record(1)]

    open_to_all = boot(options=Option.UNPROTECTED)
    log(open_to_all, 1)
    where = open_to_all.memory.buf[SERVICE_MEMORY : SERVICE_MEMORY + 200].tobytes().index(b"syscall=59")
    open_to_all.kernel.write(SERVICE_MEMORY + where, b"syscall=00")
    # Entries are hashed when they come: that it was changed is noticed, what it said is lost.
    assert open_to_all.kernel.read(SERVICE_MEMORY + where, 10) == b"syscall=00"
    with pytest.raises(VerificationFailed, match="at least one was changed"):
        list(reader(open_to_all).fetch())


def test_numbers_that_are_the_services_own(bench: Bench) -> None:
    """The kernel cannot write what only the service says: launched, restored, dropped."""
    for call in (*(kind for kind in EntryKind if kind >= EntryKind.STARTED), 0xFFFF):
        assert bench.ask(LOG_NUMBER, call, bytes(32)) == (Status.UNKNOWN_CALL, b"")
    for number in (0, 2, 99, 0xFFFF):
        assert bench.ask(number, KernelCall.RECORDS, b"") == (Status.UNKNOWN_SERVICE, b"")
    # Users' calls mean something else here: the kernel neither acknowledges nor sets rules.
    assert bench.ask(LOG_NUMBER, UserCall.SET_RULES, b"-D")[0] == Status.UNKNOWN_CALL
    assert bench.ask(LOG_NUMBER, UserCall.ACKNOWLEDGE, struct.pack("<Q", 1))[0] == Status.BAD_REQUEST
    assert [entry.kind for entry in reader(bench).fetch()] == [EntryKind.STARTED]
    assert bench.ask(LOG_NUMBER, KernelCall.HEARTBEAT)[0] == Status.OK


def test_nothing_and_everything(bench: Bench) -> None:
    """Calls without records, records without text, and a call as large as a block."""
    bench.call(PROTOCOL, REGISTER, BLOCK, 16)
    size = 16 * PAGE
    bodies = [b"", pack_records([AuditRecord(1300, b"")] * 100), b"\xff" * 8, bytes(size - BLOCK_HEADER)]
    reading = reader(bench)
    found = [item.body for item in list(reading.fetch())]
    for body in bodies:
        reading.acknowledge()
        write_request(bench.kernel, BLOCK, size, BlockRequest(LOG_NUMBER, KernelCall.RECORDS, body))
        bench.enter(0, vmpl=1)
        assert read_answer(bench.kernel, BLOCK, size) == OK
        found += [item.body for item in list(reading.fetch())]
    assert found[1:] == bodies
