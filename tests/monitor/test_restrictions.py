# SPDX-License-Identifier: GPL-2.0-or-later
"""Rights that a service has taken from all pages of an owner, for good; hostile kernels and hosts meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from tests.monitor.harness import (
    FREE,
    FREE_2M,
    KERNEL_CAA,
    LARGE,
    PAGE,
    RAM,
    SMALL,
    Bench,
    kernel_vmsa,
)
from tests.monitor.keeper import MOVE, NUMBER, RESTRICT, Services, moved
from veil.formats.domains import Domain
from veil.formats.status import Status
from veil.monitor import Owner
from veil.monitor.svsm_call import ResultCode
from veil.snp import RmpViolation
from veil.snp.host_view import HostView
from veil.snp.rmp import Permission, RmpResult

OK = ResultCode.SUCCESS


@pytest.fixture
def bench() -> Bench:
    return Bench(vcpus=2, services=Services).boot()


def test_memory_that_is_no_code_any_more(bench: Bench) -> None:
    keep = Permission.RW | Permission.UX
    assert bench.pvalidate(FREE_2M | 1)[0] == OK
    assert bench.ask(NUMBER, MOVE, moved(SMALL)) == (Status.OK, b"done")
    assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, keep))) == (Status.OK, b"done")
    kernel = bench.kernel
    for page in (SMALL + PAGE, FREE, FREE + LARGE - PAGE, KERNEL_CAA, bench.monitor.state.blocks[0][0]):
        kernel.write(page, b"code")
        with pytest.raises(RmpViolation):
            kernel.check_execute(page)
    kernel.check_execute(SMALL)
    # Nor what is validated later, in both sizes, or comes back from another use.
    assert bench.pvalidate(FREE_2M | 1 | 4, SMALL + PAGE, SMALL + PAGE | 4)[0] == OK
    assert bench.ask(NUMBER, MOVE, moved(SMALL, source=Owner.KERNEL_CODE, target=Owner.KERNEL)) == (Status.OK, b"done")
    kernel.write(SMALL + 2 * PAGE, bytes(PAGE))  # no VMSA: given back
    assert bench.call(0, 2, SMALL + 2 * PAGE, FREE, 1).rax == ResultCode.INVALID_PARAMETER
    for page in (FREE_2M, SMALL, SMALL + PAGE, SMALL + 2 * PAGE):
        kernel.write(page, b"code")
        with pytest.raises(RmpViolation):
            kernel.check_execute(page)
    # Nothing gives it back.
    assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, Permission.ALL))) == (Status.OK, b"done")
    with pytest.raises(RmpViolation):
        kernel.check_execute(SMALL)
    bench.check()


def test_without_a_restriction_data_is_code(bench: Bench) -> None:
    bench.kernel.write(SMALL, b"code")
    bench.kernel.check_execute(SMALL)


def test_a_page_that_keeps_its_rights(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is told. What is restricted stays so, all the rest as well, and the page when it is asked again."""
    bench.register()
    bench.host.psmash(FREE_2M)
    view_type, keep = type(bench.view(0)), Permission.RW | Permission.UX
    honest, again = view_type.rmpadjust, bytes((Owner.KERNEL, keep))

    def rmpadjust(self: Any, gpa: int, **more: Any) -> RmpResult:
        return RmpResult.FAIL_INUSE if gpa == SMALL else honest(self, gpa, **more)

    monkeypatch.setattr(view_type, "rmpadjust", rmpadjust)
    assert bench.ask(NUMBER, RESTRICT, again) == (Status.OK, b"refused UNAVAILABLE")
    bench.kernel.check_execute(SMALL)
    for page in (SMALL - PAGE, SMALL + PAGE, FREE, FREE_2M + LARGE - PAGE, KERNEL_CAA):
        assert not bench.kernel.allows(page, Permission.SX)
    assert bench.monitor.state.rows.permissions(Owner.KERNEL, Domain.UNT) == keep
    # Not even when it is to get all rights: a restriction has no way back.
    assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, Permission.ALL)))[1] == b"refused UNAVAILABLE"
    monkeypatch.undo()
    assert bench.ask(NUMBER, RESTRICT, again) == (Status.OK, b"done")
    assert not bench.kernel.allows(SMALL, Permission.SX)
    bench.check()


@pytest.mark.parametrize("kind", ["block", "calling area"])
def test_pages_that_change_hands_while_memory_is_restricted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """While the host splits an entry, the kernel's second VCPU has its block, or its calling area, become plain memory
    again: no page keeps the right that all of them lose."""
    # Its calling area lies in a large entry, of which not all is plain memory then.
    bench.kernel.write(FREE_2M, kernel_vmsa())
    assert bench.create_vcpu(FREE_2M, FREE + PAGE, 1) == ResultCode.SUCCESS
    page = bench.register(1) if kind == "block" else bench.caa(1)
    assert bench.kernel.allows(page, Permission.SX)
    assert bench.ask(NUMBER, MOVE, moved(SMALL)) == (Status.OK, b"done")
    split = HostView.psmash

    def attack(host: HostView, gpa: int) -> RmpResult:
        code = split(host, gpa)
        if bench.monitor.book.owner(page) is not Owner.KERNEL:
            request = (16, 0, 0, 0) if kind == "block" else (0, 0, SMALL + 4 * PAGE)
            assert bench.call(*request, vcpu=1).rax == ResultCode.SUCCESS
            assert bench.monitor.book.owner(page) is Owner.KERNEL
        return code

    monkeypatch.setattr(HostView, "psmash", attack)
    assert bench.ask(NUMBER, RESTRICT, bytes((Owner.KERNEL, Permission.RW | Permission.UX))) == (Status.OK, b"done")
    assert bench.monitor.book.owner(page) is Owner.KERNEL
    rights = bench.rmp.effective()["perms"][:, 3]
    assert [hex(at * PAGE) for at in range(RAM // PAGE) if int(rights[at]) & Permission.SX] == [hex(SMALL)]


@pytest.mark.parametrize("owner", [Owner.MONITOR, Owner.SERVICE, Owner.SERVICE_CODE, Owner.VMSA, Owner.NOBODY])
def test_rows_that_are_not_a_services_to_restrict(bench: Bench, owner: Owner) -> None:
    assert bench.ask(NUMBER, RESTRICT, bytes((owner, 0))) == (Status.OK, b"refused NOT_ALLOWED")
