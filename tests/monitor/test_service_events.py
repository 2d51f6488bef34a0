# SPDX-License-Identifier: GPL-2.0-or-later
"""What services hear of the kernel's pages and VCPUs, with a hostile host and services around a real VeilMon."""

from __future__ import annotations

import struct

import pytest

from tests.guarding import ALLOW, HEARD, Guard
from tests.monitor.faults import fault, stopped
from tests.monitor.harness import FREE, FREE_2M, KERNEL_VMSA, MAILBOX, PAGE, SMALL, VMGEXIT, Bench, kernel_vmsa
from tests.monitor.recorder import guard_of, guarded, restored
from veil.formats.page_owners import Owner
from veil.formats.service_domain import ServiceInfo
from veil.formats.service_events import MAX_HEARD, Event, Report
from veil.formats.status import Status
from veil.monitor.service_events import Hearing
from veil.monitor.svsm_call import ResultCode
from veil.services import Asking
from veil.snp.rmp import RmpResult

OK = ResultCode.SUCCESS
RUN_SERVICES = 1 << 32 | 0x016


@pytest.fixture
def bench() -> Bench:
    return guarded()


def heard(bench: Bench) -> list[tuple[int, ...]]:
    status, body = bench.ask(Guard.number, HEARD)
    assert status == Status.OK
    return list(struct.iter_unpack("<HHQ", body))


def test_pages_that_come_and_go(bench: Bench) -> None:
    other = SMALL + PAGE
    assert bench.pvalidate(other, other + PAGE, other | 4) == (OK, 3)
    assert heard(bench) == [
        (Event.PAGES_GIVEN, 0, other), (Event.PAGES_GIVEN, 0, other + PAGE), (Event.PAGES_TAKEN, 0, other),
    ]  # fmt: skip


def test_only_what_was_done(bench: Bench) -> None:
    other = SMALL + PAGE
    assert bench.pvalidate(other, SMALL, other + PAGE) == (ResultCode.INVALID_ADDRESS, 1)
    assert heard(bench) == [(Event.PAGES_GIVEN, 0, other)]


def test_one_report_a_call_before_the_kernel_goes_on(bench: Bench) -> None:
    pages = [SMALL + PAGE + number * PAGE for number in range(14)]
    reports: list[Report] = []

    def listen(report: Report) -> None:
        assert bench.kernel.read_u8(bench.caa()) == 0
        assert stopped(bench.vmsa(KERNEL_VMSA)), "the caller waits"
        reports.append(report)

    guard_of(bench).listen = listen
    bench.log.clear()
    assert bench.pvalidate(*pages)[0] == OK
    assert [item.gpa for item in reports[0].events] == pages
    assert len(reports) == bench.log.count(RUN_SERVICES) == 1


def test_large_pages_and_what_the_host_has_to_split(bench: Bench) -> None:
    """A call that starts over after the host's PSMASH is heard once."""
    reports: list[Report] = []
    guard_of(bench).listen = reports.append
    assert bench.pvalidate(SMALL + PAGE, FREE_2M | 1, FREE + PAGE)[0] == OK
    assert bench.splits == 1
    assert [[(item.gpa, item.size) for item in report.events] for report in reports] == [
        [(SMALL + PAGE, PAGE), (FREE_2M, 1 << 21), (FREE + PAGE, PAGE)]
    ]


def test_vcpus_that_come_and_go(bench: Bench) -> None:
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    assert bench.call(0, 3, FREE).rax == OK
    assert bench.call(0, 3, FREE).rax != OK
    assert heard(bench) == [(Event.VCPU_CREATED, 1, FREE), (Event.VCPU_DELETED, 1, FREE)]


def test_a_host_that_does_not_let_them_hear(bench: Bench) -> None:
    """The kernel's call is done all the same, and the services learn later how much they do not know."""
    reports: list[Report] = []
    guard_of(bench).listen = reports.append
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == RUN_SERVICES else None
    assert bench.pvalidate(SMALL + PAGE, SMALL + 2 * PAGE)[0] == OK
    bench.on_request = lambda request: None
    assert bench.pvalidate(SMALL + 3 * PAGE)[0] == OK
    (report,) = reports
    assert ([item.gpa for item in report.events], report.lost) == ([SMALL + 3 * PAGE], 2)


def test_a_host_that_takes_a_part_of_the_mailbox_away(bench: Bench) -> None:
    """A long report finds no room, a short one does: it says what was lost."""
    reports: list[Report] = []
    guard_of(bench).listen = reports.append
    assert bench.host.rmpupdate(MAILBOX + PAGE, assigned=False) == RmpResult.SUCCESS
    pages = range(0x50000, 0x100000, PAGE)
    assert bench.pvalidate(*pages)[0] == OK
    assert not reports
    assert bench.pvalidate(SMALL + PAGE)[0] == OK
    assert [(len(report.events), report.lost) for report in reports] == [(1, len(pages))]


def test_what_was_lost_survives_a_snapshot(bench: Bench) -> None:
    """Else a host that lets nobody hear would only have to save the machine."""
    bench.on_request = lambda request: 1 << 32 | 0x017 if request == RUN_SERVICES else None
    assert bench.pvalidate(SMALL + PAGE, SMALL + 2 * PAGE)[0] == OK
    bench.on_request = lambda request: None
    monitor, services = restored(bench)
    bench.resume(monitor, services)
    bench.enter(0)
    assert bench.pvalidate(SMALL + 3 * PAGE)[0] == OK
    (report,) = guard_of(bench).reports
    assert ([item.gpa for item in report.events], report.lost) == ([SMALL + 3 * PAGE], 2)


def test_what_is_noted_survives_a_snapshot(bench: Bench) -> None:
    """In the middle of a call: the host is to split an entry, and saves the machine instead."""
    at = bench.caa() + 8
    entries = (SMALL + PAGE, FREE + PAGE)
    bench.kernel.write(at, struct.pack("<HHI2Q", len(entries), 0, 0, *entries))
    bench.kernel.write_u8(bench.caa(), 1)
    vmsa = bench.vmsa(KERNEL_VMSA)
    vmsa.guest_exit_code, vmsa.rax, vmsa.rcx = VMGEXIT, 1, at
    first = bench.vcpus[0]
    assert first.steps is not None
    next(first.steps)
    assert first.cpu is not None
    assert first.cpu.fault is not None, "an entry of 2 MiB"
    assert bench.host.psmash(FREE) == RmpResult.SUCCESS
    monitor, services = restored(bench)
    bench.resume(monitor, services)
    bench.enter(0)
    assert vmsa.rax == OK
    assert [item.gpa for report in guard_of(bench).reports for item in report.events] == list(entries)


@pytest.mark.parametrize("how", ["asks", "answers"])
def test_a_service_that_asks_veilmon_when_it_hears(bench: Bench, how: str) -> None:
    """It cannot, the kernel waits: not noticed by anybody it would have done nothing."""
    guard = guard_of(bench)

    def asks(report: Report) -> Asking[None]:
        yield from guard.context.monitor.move([(SMALL, PAGE)], Owner.KERNEL_CODE, Owner.KERNEL)

    guard.answer = {"asks": asks, "answers": lambda report: b""}[how]
    assert bench.pvalidate(SMALL + PAGE)[0] == OK
    assert bench.services is not None
    assert len(bench.services.mistakes) == 1


def test_a_service_that_fails_to_hear(bench: Bench) -> None:
    def listen(report: Report) -> None:
        raise KeyError

    guard_of(bench).listen = listen
    assert bench.pvalidate(SMALL + PAGE)[0] == OK
    assert bench.services is not None
    assert len(bench.services.mistakes) == 1


def test_two_vcpus_at_once(bench: Bench) -> None:
    """The second one waits for the mailbox, and both are heard."""
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == OK
    bench.enter(1)
    before = len(heard(bench))
    first = bench.vcpus[0]
    at = bench.caa() + 8
    bench.kernel.write(at, struct.pack("<HHIQ", 1, 0, 0, SMALL + PAGE))
    bench.kernel.write_u8(bench.caa(), 1)
    vmsa = bench.vmsa(KERNEL_VMSA)
    vmsa.guest_exit_code, vmsa.rax, vmsa.rcx = VMGEXIT, 1, at
    first.vmpl = 0
    assert first.steps is not None
    next(first.steps)  # the mailbox is full, and the host runs another VCPU

    waited = 0

    def on_request(request: int) -> None:
        nonlocal waited
        if request == 0x080:
            waited += 1
            if waited == 3:
                first.vmpl = 1
                first.vmcb.ghcb_gpa = 0x017
                bench.on_request = lambda request: None
                while first.vmpl != 3:
                    vmpl = first.vmpl
                    assert first.steps is not None
                    next(first.steps if vmpl == 0 else bench._service_steps(first))
                    bench._exit(first, vmpl)

    bench.on_request = on_request
    second = bench.caa(1) + 8
    bench.kernel.write(second, struct.pack("<HHIQ", 1, 0, 0, SMALL + 2 * PAGE))
    assert bench.call(0, 1, second, vcpu=1).rax == OK
    assert waited == 3
    assert heard(bench)[before:] == [(Event.PAGES_GIVEN, 0, SMALL + PAGE), (Event.PAGES_GIVEN, 1, SMALL + 2 * PAGE)]


def test_what_is_noted_is_bounded() -> None:
    hearing = Hearing(frozenset({Event.PAGES_TAKEN}), frozenset())
    for number in range(MAX_HEARD + 3):
        hearing.pages(0, number * PAGE, PAGE, taken=False)
        hearing.pages(0, number * PAGE, PAGE, taken=True)
    report = hearing.take()
    assert (len(report.events), report.lost) == (MAX_HEARD, 3)
    assert Report.parse(report.pack()) == report
    assert not hearing.waits


def test_what_a_service_does_not_hear_costs_nothing() -> None:
    assert Hearing.of([ServiceInfo("quiet", 1, Guard.guid, b"")]) is None


# Snapshots


def test_snapshot(bench: Bench) -> None:
    bench.resume(*restored(bench))
    bench.enter(0)
    assert bench.ask(Guard.number, ALLOW, b"\1")[0] == Status.OK
    vmsa = fault(bench)
    assert not stopped(vmsa)
    assert bench.pvalidate(SMALL + PAGE)[0] == OK
    assert heard(bench) == [(Event.PAGES_GIVEN, 0, SMALL + PAGE)]
