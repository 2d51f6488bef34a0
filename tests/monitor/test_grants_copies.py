# SPDX-License-Identifier: GPL-2.0-or-later
"""What services ask VeilMon for: copies of pages that the kernel names, which may be followed by a change of owners."""

from __future__ import annotations

import struct

import pytest

from tests.monitor.harness import (
    FREE,
    KERNEL_CAA,
    KERNEL_VMSA,
    MAILBOX,
    MONITOR,
    PAGE,
    RAM,
    SERVICE_MEMORY,
    SERVICES,
    SMALL,
    Bench,
)
from tests.monitor.keeper import COPY, COPY_AND_MOVE, NUMBER, PAGES, Services
from veil.formats.request_block import BlockRequest, read_answer, write_request
from veil.formats.status import Status
from veil.monitor import Owner
from veil.monitor.svsm_call import ResultCode
from veil.snp import RmpViolation
from veil.snp.rmp import Permission

OK = ResultCode.SUCCESS


@pytest.fixture
def bench() -> Bench:
    return Bench(vcpus=2, services=Services).boot()


def ask_for_pages(bench: Bench, pages: list[int], length: int) -> tuple[Status, bytes]:
    return bench.ask(NUMBER, COPY, struct.pack("<I", length), pages=pages)


# Copies


def test_content_by_reference(bench: Bench) -> None:
    pages = [SMALL + PAGE, FREE, SMALL]
    for number, page in enumerate(pages):
        bench.kernel.write(page, bytes((number + 1,)) * PAGE)
    length = 2 * PAGE + 5
    wanted = b"\1" * PAGE + b"\2" * PAGE + b"\3" * 5
    assert ask_for_pages(bench, pages, length) == (Status.OK, wanted)
    bench.kernel.write(FREE, bytes(PAGE))
    assert bench.view(1).read(SERVICE_MEMORY, length) == wanted, "what was copied counts"
    bench.check()


@pytest.mark.parametrize("page", [MONITOR, SERVICES, MAILBOX, KERNEL_VMSA, KERNEL_CAA, RAM, (1 << 64) - PAGE])
def test_pages_that_are_not_the_kernels_to_name(bench: Bench, page: int) -> None:
    bench.view(1).write(SERVICE_MEMORY, b"before")
    assert ask_for_pages(bench, [SMALL, page], 2 * PAGE) == (Status.OK, b"refused BAD_REQUEST")
    assert bench.view(1).read(SERVICE_MEMORY, 6) == b"before"


def test_neither_shared_pages_nor_blocks_are_copied(bench: Bench) -> None:
    block = bench.register()
    assert ask_for_pages(bench, [block], 5) == (Status.OK, b"refused BAD_REQUEST")
    assert bench.pvalidate(SMALL)[0] == OK
    assert ask_for_pages(bench, [SMALL], 5) == (Status.OK, b"refused BAD_REQUEST")


def test_pages_and_lengths_that_do_not_fit(bench: Bench) -> None:
    assert ask_for_pages(bench, [SMALL], PAGE + 1) == (Status.OK, b"refused BAD_REQUEST")
    assert ask_for_pages(bench, [], 5) == (Status.OK, b"refused BAD_REQUEST")
    # More than the service has room for is the service's mistake: it has not looked.
    many = [SMALL + number * PAGE for number in range(PAGES + 1)]
    assert ask_for_pages(bench, many, len(many) * PAGE)[0] == Status.UNAVAILABLE


@pytest.mark.parametrize("pages", [[SMALL, SMALL + 1], [SMALL, FREE, SMALL]], ids=["not a page", "a page twice"])
def test_lists_of_pages_that_cannot_be(bench: Bench, pages: list[int]) -> None:
    assert ask_for_pages(bench, pages, len(pages) * PAGE) == (Status.BAD_REQUEST, b""), "no service was asked"
    assert ask_for_pages(bench, [SMALL, FREE], 2 * PAGE)[0] == Status.OK


def test_more_pages_than_the_body_has(bench: Bench) -> None:
    gpa = bench.register()
    write_request(bench.kernel, gpa, 4 * PAGE, BlockRequest(NUMBER, COPY, b"1234"))
    for count in (1, 0xFFFFFFFF):
        bench.kernel.write(gpa, struct.pack("<I", 1))
        bench.kernel.write(gpa + 0x38, struct.pack("<I", count))
        bench.enter(0, vmpl=1)
        assert read_answer(bench.kernel, gpa, 4 * PAGE) == (Status.BAD_REQUEST, b"")


# A copy and a change in one request


def test_a_copy_and_then_a_change(bench: Bench) -> None:
    bench.kernel.write(SMALL, b"a file")
    bench.kernel.write(FREE, b"code")
    asked = struct.pack("<IQ", 6, FREE)
    assert bench.ask(NUMBER, COPY_AND_MOVE, asked, pages=[SMALL]) == (Status.OK, b"a file")
    assert bench.monitor.book.owner(FREE) == Owner.KERNEL_CODE
    with pytest.raises(RmpViolation):
        bench.kernel.write(FREE, b"evil")


@pytest.mark.parametrize(
    ("copied", "changed", "why"),
    [(MONITOR, FREE, b"BAD_REQUEST"), (KERNEL_CAA, FREE, b"BAD_REQUEST"), (SMALL, MONITOR, b"NOT_ALLOWED")],
)
def test_a_copy_or_a_change_that_is_refused(bench: Bench, copied: int, changed: int, why: bytes) -> None:
    """Nothing has another owner then."""
    before = bench.monitor.book.owner(changed)
    asked = struct.pack("<IQ", 5, changed)
    assert bench.ask(NUMBER, COPY_AND_MOVE, asked, pages=[copied]) == (Status.OK, b"refused " + why)
    assert bench.monitor.book.owner(changed) == before
    assert bench.kernel.allows(FREE, Permission.ALL)
    bench.check()
