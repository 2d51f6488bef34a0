# SPDX-License-Identifier: GPL-2.0-or-later
"""What services ask VeilMon for: pages that change owner; hostile kernels, hosts and services."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.monitor.harness import (
    FREE,
    FREE_2M,
    KERNEL_CAA,
    KERNEL_VMSA,
    MAILBOX,
    MAILBOX_SIZE,
    MONITOR,
    PAGE,
    RAM,
    SERVICE_MEMORY,
    SERVICES,
    SMALL,
    Bench,
    Terminated,
    kernel_vmsa,
)
from tests.monitor.keeper import CHANGE, MOVE, NUMBER, POKE, RESTRICT, Services, moved
from veil.formats.domains import Domain
from veil.formats.errors import FormatError
from veil.formats.request_block import BlockRequest, read_answer, write_request
from veil.formats.service_domain import (
    COPY_PAGES,
    MOVE_CHANGES,
    OUTBOX_SIZE,
    Change,
    CopyIn,
    GrantCall,
    Move,
    Restrict,
    pack_copy_and_move,
    parse_copy_and_move,
)
from veil.formats.status import Status
from veil.monitor import Option, Owner, VeilMon
from veil.monitor.page_rights import ROWS
from veil.monitor.svsm_call import ResultCode
from veil.snp import RmpViolation
from veil.snp.host_view import HostView
from veil.snp.rmp import Adjustment, Permission, RmpResult
from veil.snp.view import View

OK = ResultCode.SUCCESS
OUTBOX = MAILBOX + MAILBOX_SIZE - OUTBOX_SIZE


@pytest.fixture
def bench() -> Bench:
    return Bench(vcpus=2, services=Services).boot()


# Pages that change their owner


def test_a_page_of_the_kernels_becomes_code(bench: Bench) -> None:
    bench.kernel.write(SMALL, b"code")
    assert bench.ask(NUMBER, MOVE, moved(SMALL, SMALL + PAGE)) == (Status.OK, b"done")
    assert bench.monitor.book.owner(SMALL) == Owner.KERNEL_CODE
    bench.kernel.check_execute(SMALL, 4)
    assert bench.kernel.read(SMALL, 4) == b"code"
    with pytest.raises(RmpViolation):
        bench.kernel.write(SMALL, b"evil")
    # Nor by another way: not given back, no context, no calling area, no block, no list of PVALIDATE's.
    assert bench.pvalidate(SMALL)[0] == ResultCode.INVALID_ADDRESS
    assert bench.pvalidate(SMALL | 4)[0] == ResultCode.INVALID_ADDRESS
    assert bench.call(0, 0, SMALL).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(0, 2, SMALL, FREE, 1).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(16, 0, SMALL, 1).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(0, 1, SMALL).rax == ResultCode.INVALID_ADDRESS
    # The service patches it in the kernel's place, and gives it back.
    assert bench.ask(NUMBER, POKE, struct.pack("<Q", SMALL)) == (Status.OK, b"")
    assert bench.kernel.read(SMALL, 7) == b"patched"
    back = moved(SMALL, SMALL + PAGE, source=Owner.KERNEL_CODE, target=Owner.KERNEL)
    assert bench.ask(NUMBER, MOVE, back) == (Status.OK, b"done")
    bench.kernel.write(SMALL, b"mine")
    assert not bench.view(1).allows(SMALL, Permission.R)
    bench.check()


def test_several_changes_at_once(bench: Bench) -> None:
    first = struct.pack("<HHQ", Owner.KERNEL, Owner.KERNEL_RODATA, SMALL)
    second = struct.pack("<HHQ", Owner.KERNEL, Owner.KERNEL_CODE, SMALL + PAGE)
    assert bench.ask(NUMBER, CHANGE, first + second) == (Status.OK, b"done")
    assert bench.monitor.book.owner(SMALL) == Owner.KERNEL_RODATA
    assert bench.monitor.book.owner(SMALL + PAGE) == Owner.KERNEL_CODE
    assert not bench.kernel.allows(SMALL, Permission.SX)
    assert bench.kernel.allows(SMALL + PAGE, Permission.SX)
    # Only all of them: the second page is none of the kernel's.
    third = struct.pack("<HHQ", Owner.KERNEL_RODATA, Owner.KERNEL, SMALL)
    assert bench.ask(NUMBER, CHANGE, third + second) == (Status.OK, b"refused NOT_ALLOWED")
    assert bench.monitor.book.owner(SMALL) == Owner.KERNEL_RODATA


def test_a_modules_code_is_what_nobody_could_write_before(bench: Bench) -> None:
    """Whoever checks it does so before anybody can execute it."""
    body = moved(SMALL, target=Owner.MODULE_CODE)
    assert bench.ask(NUMBER, MOVE, body) == (Status.OK, b"refused NOT_ALLOWED")
    assert bench.ask(NUMBER, MOVE, moved(SMALL, target=Owner.KERNEL_RODATA)) == (Status.OK, b"done")
    body = moved(SMALL, source=Owner.KERNEL_RODATA, target=Owner.MODULE_CODE)
    assert bench.ask(NUMBER, MOVE, body) == (Status.OK, b"done")
    bench.kernel.check_execute(SMALL, 4)


def test_unprotected_the_kernel_writes_code() -> None:
    bench = Bench(services=Services, options=Option.UNPROTECTED).boot()
    assert bench.ask(NUMBER, MOVE, moved(SMALL)) == (Status.OK, b"done")
    bench.kernel.write(SMALL, b"evil")


def test_pages_of_a_large_rmp_entry(bench: Bench) -> None:
    """The host has to split it first: VeilMon asks for that and goes on."""
    assert bench.ask(NUMBER, MOVE, moved(FREE + PAGE)) == (Status.OK, b"done")
    assert bench.splits == 1
    with pytest.raises(RmpViolation):
        bench.kernel.write(FREE + PAGE, b"evil")
    bench.kernel.write(FREE, b"mine")
    bench.kernel.write(FREE + 2 * PAGE, b"mine")


def test_an_enclaves_page_is_zero_before_the_kernel_may_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may run another VCPU of the kernel's at any step."""
    assert bench.ask(NUMBER, MOVE, moved(SMALL, target=Owner.ENCLAVE)) == (Status.OK, b"done")
    zero, readable = View.zero, []

    def watched(view: View, gpa: int, length: int) -> None:
        readable.append(bench.kernel.allows(SMALL, Permission.R, PAGE))
        zero(view, gpa, length)

    monkeypatch.setattr(View, "zero", watched)
    body = moved(SMALL, source=Owner.ENCLAVE, target=Owner.KERNEL)
    assert bench.ask(NUMBER, MOVE, body) == (Status.OK, b"done")
    assert readable == [False]
    assert bench.kernel.allows(SMALL, Permission.R, PAGE)


def test_what_an_enclave_held_nobody_finds(bench: Bench) -> None:
    assert bench.ask(NUMBER, MOVE, moved(SMALL, target=Owner.ENCLAVE)) == (Status.OK, b"done")
    with pytest.raises(RmpViolation):
        bench.kernel.read(SMALL, 1)
    view = bench.view(2)
    view.write(SMALL, b"secret")
    back = moved(SMALL, source=Owner.ENCLAVE, target=Owner.KERNEL)
    assert bench.ask(NUMBER, MOVE, back) == (Status.OK, b"done")
    assert bench.kernel.read(SMALL, PAGE) == bytes(PAGE)
    assert not view.allows(SMALL, Permission.R)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (moved(MONITOR), "NOT_ALLOWED"),
        (moved(SERVICES), "NOT_ALLOWED"),
        (moved(KERNEL_VMSA), "NOT_ALLOWED"),
        (moved(KERNEL_CAA), "NOT_ALLOWED"),
        (moved(RAM), "NOT_ALLOWED"),
        (moved(1 << 60), "NOT_ALLOWED"),
        (moved(SMALL, MONITOR), "NOT_ALLOWED"),
        (moved(MONITOR, source=Owner.MONITOR, target=Owner.KERNEL), "NOT_ALLOWED"),
        (moved(SERVICE_MEMORY, source=Owner.SERVICE, target=Owner.KERNEL), "NOT_ALLOWED"),
        (moved(KERNEL_VMSA, source=Owner.BOOT_VMSA, target=Owner.KERNEL), "NOT_ALLOWED"),
        (moved(SMALL, target=Owner.SERVICE), "NOT_ALLOWED"),
        (moved(SMALL, target=Owner.VMSA), "NOT_ALLOWED"),
        (moved(SMALL, source=Owner.KERNEL_CODE, target=Owner.KERNEL), "NOT_ALLOWED"),
        (moved(SMALL, SMALL), "BAD_REQUEST"),
        (moved(SMALL + 8), "BAD_REQUEST"),
        (moved(), "BAD_REQUEST"),
    ],
)
def test_moves_that_must_not_be(bench: Bench, body: bytes, status: str) -> None:
    bench.register()
    before = bench.rmp.dump(), list(bench.monitor.book.runs())
    assert bench.ask(NUMBER, MOVE, body) == (Status.OK, b"refused " + status.encode())
    assert (bench.rmp.dump(), list(bench.monitor.book.runs())) == before
    bench.check()


def test_a_page_that_is_shared_stays_what_it_is(bench: Bench) -> None:
    assert bench.pvalidate(SMALL)[0] == OK
    assert bench.ask(NUMBER, MOVE, moved(SMALL - PAGE, SMALL)) == (Status.OK, b"refused UNAVAILABLE")
    assert bench.monitor.book.owner(SMALL - PAGE) == bench.monitor.book.owner(SMALL) == Owner.KERNEL
    bench.kernel.write(SMALL - PAGE, b"mine")


def page_by_page(view: View, adjustments: Sequence[Adjustment]) -> tuple[RmpResult, int]:
    """As the machine does it, but each RMPADJUST can be the test's."""
    for gpa, pages, vmpl, permissions in adjustments:
        for page in range(gpa, gpa + pages * PAGE, PAGE):
            code = view.rmpadjust(page, vmpl=vmpl, permissions=permissions)
            if code != RmpResult.SUCCESS:
                return code, page
    return RmpResult.SUCCESS, 0


@pytest.mark.parametrize("how", ["page taken", "RMPADJUST refused"])
@pytest.mark.parametrize("at", range(4))
def test_a_host_that_stops_a_move_in_the_middle(at: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its RMPADJUSTs fails, all pages are the kernel's again, with the kernel's rights.

    Two change on each page: the kernel's rights first, then the services'.
    """
    bench = Bench(services=Services).boot()
    bench.register()
    pages = [SMALL, SMALL + PAGE]
    view_type = type(bench.view(0))
    honest, seen = view_type.rmpadjust, 0

    def rmpadjust(self: Any, gpa: int, **more: Any) -> RmpResult:
        nonlocal seen
        seen += 1
        if seen == at + 1:
            if how == "RMPADJUST refused":
                return RmpResult.FAIL_INUSE
            assert bench.host.rmpupdate(gpa, assigned=False) == RmpResult.SUCCESS
        return honest(self, gpa, **more)

    monkeypatch.setattr(view_type, "rmpadjust", rmpadjust)
    monkeypatch.setattr(view_type, "rmpadjust_all", page_by_page)
    assert bench.ask(NUMBER, MOVE, moved(*pages)) == (Status.OK, b"refused UNAVAILABLE")
    monkeypatch.undo()
    assert {bench.monitor.book.owner(page) for page in pages} == {Owner.KERNEL}
    for page in pages:
        perms = bench.rmp.effective()[page // PAGE]["perms"]
        assert not perms[1]
        assert not perms[2]
        assert bench.kernel.allows(page, Permission.ALL) or how == "page taken"
    bench.check()


def test_what_could_be_code_again_is_not_written_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MOVE gives code back and takes another page, whose RMP entry the host must split first. Then the kernel writes
    what was code, and has the host take the other page away, so that the code is code again."""
    bench.kernel.write(SMALL, b"code")
    assert bench.ask(NUMBER, MOVE, moved(SMALL)) == (Status.OK, b"done")
    split, wrote = HostView.psmash, []

    def attack(host: HostView, gpa: int) -> RmpResult:
        code = split(host, gpa)
        with contextlib.suppress(RmpViolation):
            bench.kernel.write(SMALL, b"evil")
            wrote.append(SMALL)
        assert bench.host.rmpupdate(FREE, assigned=False) == RmpResult.SUCCESS
        return code

    monkeypatch.setattr(HostView, "psmash", attack)
    back = struct.pack("<HHQ", Owner.KERNEL_CODE, Owner.KERNEL, SMALL)
    taken = struct.pack("<HHQ", Owner.KERNEL, Owner.KERNEL_RODATA, FREE)
    assert bench.ask(NUMBER, CHANGE, back + taken) == (Status.OK, b"refused UNAVAILABLE")
    assert bench.splits == 1
    assert not wrote
    bench.kernel.check_execute(SMALL, 4)
    assert bench.kernel.read(SMALL, 4) == b"code"


@pytest.mark.parametrize("source", [Owner.KERNEL_CODE, Owner.ENCLAVE])
@pytest.mark.parametrize("fails", [True, False])
def test_what_leaves_is_not_yet_the_kernels(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, source: Owner, *, fails: bool
) -> None:
    """While the host splits an entry for another page of the same MOVE, the kernel, on its second VCPU, asks VeilMon
    for what it may do with its own pages: then it could write what becomes code again, or read an enclave's page."""
    bench.kernel.write(FREE_2M, kernel_vmsa())
    assert bench.create_vcpu(FREE_2M, FREE_2M + PAGE, 1) == ResultCode.SUCCESS
    assert bench.ask(NUMBER, MOVE, moved(SMALL, target=source)) == (Status.OK, b"done")
    bench.view(0).write(SMALL, b"held")
    split, answers = HostView.psmash, list[int]()
    entries = FREE_2M + 2 * PAGE

    def attack(host: HostView, gpa: int) -> RmpResult:
        code = split(host, gpa)
        for entry in (SMALL, SMALL | 4):
            bench.kernel.write(entries, struct.pack("<HHIQ", 1, 0, 0, entry))
            answers.append(bench.call(0, 1, entries, vcpu=1).rax)
        answers.append(bench.call(16, 0, SMALL, 1, vcpu=1).rax)
        answers.append(bench.call(0, 0, SMALL, vcpu=1).rax)
        answers.append(bench.call(0, 2, SMALL, FREE_2M + 3 * PAGE, 1, vcpu=1).rax)
        assert not bench.kernel.allows(SMALL, Permission.W)
        if fails:
            assert bench.host.rmpupdate(FREE, assigned=False) == RmpResult.SUCCESS
        return code

    monkeypatch.setattr(HostView, "psmash", attack)
    back = struct.pack("<HHQ", source, Owner.KERNEL, SMALL)
    taken = struct.pack("<HHQ", Owner.KERNEL, Owner.KERNEL_RODATA, FREE)
    answer = b"refused UNAVAILABLE" if fails else b"done"
    assert bench.ask(NUMBER, CHANGE, back + taken) == (Status.OK, answer)
    assert answers == [ResultCode.INVALID_ADDRESS] * 5
    assert bench.monitor.book.owner(SMALL) == (source if fails else Owner.KERNEL)
    assert bench.view(0).read(SMALL, 4) == (bytes(4) if source is Owner.ENCLAVE and not fails else b"held")


def test_what_was_written_meanwhile_is_no_code(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same after the kernel got its rights on the first page: only a host can stop the move then."""
    pages = [SMALL, SMALL + 2 * PAGE]
    assert bench.ask(NUMBER, MOVE, moved(*pages)) == (Status.OK, b"done")
    honest = View.rmpadjust

    def adjust(view: View, gpa: int, *, vmpl: int, permissions: int, **more: Any) -> RmpResult:
        if gpa == pages[1] and permissions & Permission.W:
            bench.kernel.write(SMALL, b"evil")
            assert bench.host.rmpupdate(gpa, assigned=False) == RmpResult.SUCCESS
        return honest(view, gpa, vmpl=vmpl, permissions=permissions, **more)

    monkeypatch.setattr(View, "rmpadjust", adjust)
    monkeypatch.setattr(View, "rmpadjust_all", page_by_page)
    body = moved(*pages, source=Owner.KERNEL_CODE, target=Owner.KERNEL)
    assert bench.ask(NUMBER, MOVE, body) == (Status.OK, b"refused UNAVAILABLE")
    assert bench.monitor.book.owner(SMALL) == Owner.KERNEL_CODE
    bench.kernel.check_execute(SMALL, 4)
    assert not bench.kernel.allows(SMALL, Permission.W)
    assert bench.kernel.read(SMALL, 4) == bytes(4)


def test_rights_that_cannot_be_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is there still, and that RMPADJUST refuses for good: VeilMon stops before anybody else runs.

    Else the page could keep what the target's row gives, while the book says that it is the kernel's.
    """
    bench.register()
    view_type = type(bench.view(0))
    honest = view_type.rmpadjust

    def rmpadjust(self: Any, gpa: int, *, vmpl: int, permissions: int, **more: Any) -> RmpResult:
        if gpa == SMALL + PAGE or (vmpl == 1 and not permissions):
            return RmpResult.FAIL_INUSE
        return honest(self, gpa, vmpl=vmpl, permissions=permissions, **more)

    monkeypatch.setattr(view_type, "rmpadjust", rmpadjust)
    monkeypatch.setattr(view_type, "rmpadjust_all", page_by_page)
    with pytest.raises(Terminated):
        bench.ask(NUMBER, MOVE, moved(SMALL, SMALL + PAGE))
    assert bench.monitor.last_error is not None
    assert "cannot get its rights back" in bench.monitor.last_error


def test_a_block_that_vmpl_1_would_keep(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.register()
    view_type = type(bench.view(0))
    monkeypatch.setattr(view_type, "rmpadjust", lambda *_, **__: RmpResult.FAIL_INUSE)
    with pytest.raises(Terminated):
        bench.call(16, 0, 0, 0)


# The outbox


def test_the_outbox_is_out_of_the_kernels_reach(bench: Bench) -> None:
    with pytest.raises(RmpViolation):
        write_request(bench.kernel, OUTBOX, OUTBOX_SIZE, BlockRequest(0, 0, Move([]).pack()))
    open_to_all = Bench(services=Services, options=Option.UNPROTECTED).boot()
    forged = Move([Change(Owner.KERNEL, Owner.ENCLAVE, [(SMALL, PAGE)])]).pack()
    write_request(open_to_all.kernel, OUTBOX, OUTBOX_SIZE, BlockRequest(0, 0, forged))
    open_to_all.enter(0)
    assert open_to_all.monitor.book.owner(SMALL) == Owner.ENCLAVE


# Snapshots and formats


def test_snapshot(bench: Bench) -> None:
    assert bench.ask(NUMBER, MOVE, moved(SMALL)) == (Status.OK, b"done")
    assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, Permission.RW))) == (Status.OK, b"done")
    monitor, services = VeilMon(), Services()
    monitor.restore(bench.monitor.save())
    assert bench.services is not None
    services.restore(bench.services.save())
    bench.resume(monitor, services)
    assert bench.monitor.book.owner(SMALL) == Owner.KERNEL_CODE
    assert bench.pvalidate(SMALL + PAGE, SMALL + PAGE | 4)[0] == OK
    with pytest.raises(RmpViolation):
        bench.kernel.check_execute(SMALL + PAGE)
    assert bench.ask(NUMBER, MOVE, moved(SMALL, source=Owner.KERNEL_CODE, target=Owner.KERNEL)) == (Status.OK, b"done")


_OWNERS = st.sampled_from(Owner)
_GPAS = st.integers(0, (1 << 52) - 1).map(lambda page: page * PAGE)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    for kind in (Move, CopyIn, Restrict):
        try:
            found = kind.parse(data)
        except FormatError:
            continue
        assert kind.parse(found.pack()) == found
    try:
        both = parse_copy_and_move(data)
    except FormatError:
        return
    assert parse_copy_and_move(pack_copy_and_move(*both)) == both


@given(_OWNERS, _OWNERS, st.lists(_GPAS, min_size=1, max_size=20, unique=True), st.integers(1, PAGE))
def test_requests_carry_what_was_put_in(source: Owner, target: Owner, pages: list[int], last: int) -> None:
    ranges = [(gpa, PAGE) for gpa in pages]
    parts = [ranges[number::MOVE_CHANGES] for number in range(min(MOVE_CHANGES, len(ranges)))]
    move = Move([Change(source, target, part) for part in parts])
    assert Move.parse(move.pack()) == move
    twice = Move([Change(source, target, ranges), Change(target, source, ranges[-1:])])
    with pytest.raises(FormatError, match="named once"):
        Move.parse(twice.pack())
    with pytest.raises(FormatError, match="changes"):
        Move.parse(Move([Change(source, target, ranges)] * (MOVE_CHANGES + 1)).pack())
    with pytest.raises(FormatError, match="too many"):
        Move.parse(move.pack() + b"\0")
    copy = CopyIn.parse(CopyIn(SERVICE_MEMORY, (len(pages) - 1) * PAGE + last, pages).pack())
    assert list(copy.pages) == pages
    packed = pack_copy_and_move(copy, move)
    assert parse_copy_and_move(packed) == (copy, move)
    for other in (packed[:3], packed[:-1], packed + b"\0", bytes(4) + packed[4:], b"\xff" * 4 + packed[4:]):
        with pytest.raises(FormatError):
            parse_copy_and_move(other)
    with pytest.raises(FormatError):
        CopyIn.parse(CopyIn(0, (COPY_PAGES + 1) * PAGE, [0] * (COPY_PAGES + 1)).pack())


_MOVES = st.builds(
    lambda source, target, gpa: Move([Change(source, target, [(gpa, PAGE)])]).pack(),
    _OWNERS, _OWNERS, st.sampled_from([SMALL, FREE, MONITOR, SERVICES, KERNEL_CAA, KERNEL_VMSA]),
)  # fmt: skip


@settings(max_examples=examples(200), deadline=None)
@given(st.integers(0, max(GrantCall) + 1), st.binary(max_size=64) | _MOVES)
def test_any_outbox(call: int, body: bytes) -> None:
    """Whatever a faulty service asks for, no level gets what its rows do not give it."""
    bench = _FUZZED
    write_request(bench.view(1), OUTBOX, OUTBOX_SIZE, BlockRequest(0, call, body))
    bench.enter(0)
    assert read_answer(bench.view(1), OUTBOX, OUTBOX_SIZE) is not None
    rights = bench.rmp.effective()["perms"]
    for page in range(RAM // PAGE):
        row = ROWS[bench.monitor.book.owner(page * PAGE)]
        for domain in (Domain.SER, Domain.ENC, Domain.UNT):
            assert not int(rights[page, domain.vmpl]) & ~int(row.of(domain)), f"page {page:#x}, {domain.name}"


_FUZZED = Bench(services=Services).boot()
