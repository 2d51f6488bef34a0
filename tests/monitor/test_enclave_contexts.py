# SPDX-License-Identifier: GPL-2.0-or-later
"""Contexts of VMPL 2: what VeilMon seals for a service, and what it does not."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.monitor.harness import (
    KERNEL_VMSA,
    MONITOR,
    MONITOR_VMSA,
    PAGE,
    SERVICE_MEMORY,
    SMALL,
    SVME,
    Bench,
)
from veil.formats.domains import SERVICE_VMPL, Domain
from veil.formats.errors import FormatError
from veil.formats.page_owners import Owner
from veil.formats.service_domain import EnclaveContext
from veil.formats.status import Status
from veil.monitor import VeilMon
from veil.monitor.svsm_call import ResultCode
from veil.services import Asking, KernelRequest, MonitorRefused, Service, ServiceDomain
from veil.snp import RmpViolation
from veil.snp.layouts import SevFeatures, Vmsa, VmsaSegment
from veil.snp.rmp import Permission, RmpResult

TAKE, GIVE, MAKE, DROP = range(4)
NUMBER = 12
REQUEST = struct.Struct("<Q")


class Encloser(Service):
    """Takes pages, makes contexts of them: whatever it is asked, for tests only."""

    name = "encloser"
    number = NUMBER
    guid = uuid.UUID("eeeeeeee-0000-4000-8000-000000000012")

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        return PAGE

    def kernel_request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        (gpa,) = REQUEST.unpack(request.body)
        return self._serve(request.call, gpa)

    def _serve(self, call: int, gpa: int) -> Asking[bytes]:
        monitor = self.context.monitor
        try:
            if call == TAKE:
                yield from monitor.move([(gpa, PAGE)], Owner.KERNEL, Owner.ENCLAVE)
            elif call == GIVE:
                yield from monitor.move([(gpa, PAGE)], Owner.ENCLAVE, Owner.KERNEL)
            elif call == MAKE:
                yield from monitor.make_vmsa(gpa)
            else:
                yield from monitor.drop_vmsa(gpa)
        except MonitorRefused as refused:
            return refused.status.name.encode() + b" " + str(refused).encode()
        return b"done"


class Services(ServiceDomain):
    service_types = (Encloser,)


def context(**changes: Any) -> bytes:
    """A VMSA of VMPL 2 as a service would write it."""
    values: dict[str, Any] = {
        "vmpl": 2, "cpl": 3, "efer": SVME | 0xD00, "cr0": 0x80010033, "cr4": 0x620, "rflags": 0x202, "rip": 0x1000,
        "sev_features": SevFeatures.SNP | SevFeatures.RESTRICTED_INJECTION,
        "cs": VmsaSegment(0x23, 0xAFB, 0xFFFFFFFF, 0), "ss": VmsaSegment(0x1B, 0xCF3, 0xFFFFFFFF, 0), **changes,
    }  # fmt: skip
    return bytes(Vmsa(**values)).ljust(PAGE, b"\0")


@pytest.fixture
def bench() -> Bench:
    bench = Bench(vcpus=2, services=Services).boot()
    assert ask(bench, TAKE) == b"done"
    bench.view(1).write(SMALL, context())
    return bench


def ask(bench: Bench, call: int, gpa: int = SMALL) -> bytes:
    status, answer = bench.ask(NUMBER, call, REQUEST.pack(gpa))
    assert status == Status.OK
    return answer


def permissions(bench: Bench, gpa: int = SMALL) -> list[int]:
    return [int(mask) for mask in bench.rmp.effective()[gpa // PAGE]["perms"][1:]]


def known(bench: Bench) -> tuple[set[int], set[int]]:
    """To VeilMon, and to the host."""
    return bench.monitor.domains.enclaves, bench.enclaves


def test_a_sealed_context(bench: Bench) -> None:
    assert ask(bench, MAKE) == b"done"
    assert bench.rmp.is_vmsa(SMALL)
    assert (permissions(bench), known(bench)) == ([1, 0, 0], ({SMALL}, {SMALL}))
    assert bench.monitor.book.owner(SMALL) is Owner.ENCLAVE_VMSA
    # Nobody gets at it by another way.
    assert bench.view(1).read(SMALL, 8) == context()[:8], "the services look, and change nothing"
    with pytest.raises(RmpViolation):
        bench.view(1).write(SMALL, b"x")
    for view in (bench.kernel, bench.view(2)):
        with pytest.raises(RmpViolation):
            view.read(SMALL, 8)
        with pytest.raises(RmpViolation):
            view.write(SMALL, b"x")
    for entry in (SMALL, SMALL | 4):
        assert bench.pvalidate(entry)[0] == ResultCode.INVALID_ADDRESS
    assert bench.call(0, 0, SMALL).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(0, 2, SMALL, SMALL + PAGE, 1).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(0, 3, SMALL).rax == ResultCode.INVALID_PARAMETER, "no context of VMPL 3"
    assert ask(bench, GIVE).startswith(b"NOT_ALLOWED")
    assert ask(bench, MAKE).startswith(b"NOT_ALLOWED"), "once"


def test_dropped(bench: Bench) -> None:
    assert ask(bench, MAKE) == b"done"
    assert ask(bench, DROP) == b"done"
    assert not bench.rmp.is_vmsa(SMALL)
    assert known(bench) == (set(), set())
    assert bench.view(2).read(SMALL, PAGE) == bytes(PAGE), "no registers for other enclaves to find"
    assert ask(bench, GIVE) == b"done"
    bench.kernel.write(SMALL, b"mine")
    bench.check()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("VMPL", {"vmpl": 0}),
        ("VMPL", {"vmpl": 1}),
        ("VMPL", {"vmpl": 3}),
        ("CPL", {"cpl": 0}),
        ("EFER", {"efer": 0xD00}),
        ("EFER", {"efer": SVME | 0x100}),
        ("EFER", {"efer": SVME | 0x500}),
        ("SEV_FEATURES", {"sev_features": 0}),
        ("SEV_FEATURES", {"sev_features": 1}),
        ("SEV_FEATURES", {"sev_features": 1 << 3}),
        ("SEV_FEATURES", {"sev_features": 1 | 1 << 3 | 1 << 4}),
        ("CR0", {"cr0": 0x33}),
        ("CR0", {"cr0": 0x80000033}),
        ("CR4", {"cr4": 0x600}),
        ("CR4", {"cr4": 0x1620}),
        ("RFLAGS", {"rflags": 0x3202}),
        ("RFLAGS", {"rflags": 0x302}),
        ("RFLAGS", {"rflags": 0}),
        ("CS", {"cs": VmsaSegment(0x10, 0xA9B, 0xFFFFFFFF, 0)}),
        ("CS", {"cs": VmsaSegment(0x23, 0xCFB, 0xFFFFFFFF, 0)}),
        ("SS", {"ss": VmsaSegment(0x18, 0xC93, 0xFFFFFFFF, 0)}),
        ("EVENTINJ", {"event_inj": 1 << 31}),
        ("EVENTINJ", {"exit_int_info": 1 << 31}),
        ("GUEST_EXIT_CODE", {"guest_exit_code": 0x403}),
    ],
)
def test_contexts_that_must_not_be(bench: Bench, name: str, changes: dict[str, Any]) -> None:
    """The page stays the enclave's, with the enclave's rights."""
    bench.view(1).write(SMALL, context(**changes))
    before = permissions(bench)
    answer = ask(bench, MAKE)
    assert answer == f"BAD_REQUEST the page holds no context of VMPL 2: {name}".encode()
    assert not bench.rmp.is_vmsa(SMALL)
    assert (permissions(bench), bench.monitor.book.owner(SMALL)) == (before, Owner.ENCLAVE)
    assert known(bench) == (set(), set())


@pytest.mark.parametrize("gpa", [SMALL + PAGE, MONITOR, MONITOR_VMSA, KERNEL_VMSA, SERVICE_MEMORY, 1 << 45])
def test_pages_that_are_no_enclaves(bench: Bench, gpa: int) -> None:
    before = bench.rmp.dump()
    assert ask(bench, MAKE, gpa).startswith(b"NOT_ALLOWED")
    assert ask(bench, DROP, gpa).startswith(b"NOT_ALLOWED")
    assert bench.rmp.dump() == before


def test_addresses_that_are_none(bench: Bench) -> None:
    assert ask(bench, MAKE, SMALL + 8).startswith(b"BAD_REQUEST")
    assert ask(bench, DROP, SMALL + 8).startswith(b"BAD_REQUEST")


@pytest.mark.parametrize("runs", [False, True])
def test_a_host_that_does_not_take_it(bench: Bench, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says counts for nothing but the service's answer: if it runs the context all the same, it stays one."""
    bench.takes_enclaves = False
    before = permissions(bench)
    view_type = type(bench.view(0))
    honest = view_type.rmpadjust

    def rmpadjust(self: Any, gpa: int, **more: Any) -> RmpResult:
        in_use = runs and gpa == SMALL and bench.rmp.is_vmsa(SMALL)
        return RmpResult.FAIL_INUSE if in_use else honest(self, gpa, **more)

    monkeypatch.setattr(view_type, "rmpadjust", rmpadjust)
    assert ask(bench, MAKE).startswith(b"UNAVAILABLE")
    assert bench.rmp.is_vmsa(SMALL) == runs
    monkeypatch.undo()
    if runs:
        assert (permissions(bench), known(bench)[0]) == ([1, 0, 0], {SMALL})
        assert ask(bench, DROP) == b"done"
    assert known(bench) == (set(), set())
    assert bench.monitor.book.owner(SMALL) is Owner.ENCLAVE
    assert permissions(bench) == before
    assert bench.view(2).read(SMALL, PAGE) == bytes(PAGE)


def test_a_host_that_forgets_nothing(bench: Bench) -> None:
    """It refuses DESTROY: the page is no VMSA all the same."""
    assert ask(bench, MAKE) == b"done"
    bench.takes_enclaves = False
    assert ask(bench, DROP) == b"done"
    assert (bench.rmp.is_vmsa(SMALL), known(bench)) == (False, (set(), {SMALL}))


def change_on_seal(bench: Bench, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something at the moment at which VeilMon has taken the last right away, before it looks."""
    view_type = type(bench.view(0))
    honest, done = view_type.rmpadjust, False

    def rmpadjust(self: Any, gpa: int, **more: Any) -> RmpResult:
        nonlocal done
        code = honest(self, gpa, **more)
        if not done and more["vmpl"] == SERVICE_VMPL and gpa == SMALL:
            done = True
            action()
        return code

    monkeypatch.setattr(view_type, "rmpadjust", rmpadjust)


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_a_context_that_changes_while_it_is_checked(bench: Bench, vmpl: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An enclave, the kernel, the service itself on another VCPU: none can write from before the check on."""
    refused = []

    def write() -> None:
        try:
            bench.view(vmpl).write(SMALL + Vmsa.vmpl.offset, b"\0")
        except RmpViolation as violation:
            refused.append(violation)

    change_on_seal(bench, monkeypatch, write)
    assert ask(bench, MAKE) == b"done"
    assert len(refused) == 1
    assert bench.vmsa(SMALL).vmpl == 2


def test_without_taking_the_rights_away_it_would_change(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: with the enclave's rights left in place its other thread makes a context of VMPL 0."""
    rows = bench.monitor.state.rows
    honest = rows.permissions

    def left(owner: Owner, domain: Domain) -> Permission:
        return Permission.RW if owner is Owner.ENCLAVE_VMSA and domain is Domain.ENC else honest(owner, domain)

    monkeypatch.setattr(rows, "permissions", left)
    assert ask(bench, MAKE) == b"done"
    bench.view(2).write(SMALL + Vmsa.vmpl.offset, b"\0")
    assert bench.vmsa(SMALL).vmpl == 0


@pytest.mark.parametrize("how", ["page taken", "RMPADJUST refused"])
@pytest.mark.parametrize("at", range(4))
def test_a_host_that_stops_it_in_the_middle(bench: Bench, at: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view_type = type(bench.view(0))
    honest, seen = view_type.rmpadjust, 0
    before = permissions(bench)

    def rmpadjust(self: Any, gpa: int, **more: Any) -> RmpResult:
        nonlocal seen
        seen += 1
        if seen == at + 1:
            if how == "RMPADJUST refused":
                return RmpResult.FAIL_INUSE
            assert bench.host.rmpupdate(gpa, assigned=False) == RmpResult.SUCCESS
        return honest(self, gpa, **more)

    monkeypatch.setattr(view_type, "rmpadjust", rmpadjust)
    assert ask(bench, MAKE).startswith(b"UNAVAILABLE")
    monkeypatch.undo()
    assert bench.monitor.book.owner(SMALL) is Owner.ENCLAVE
    assert not bench.rmp.is_vmsa(SMALL)
    assert permissions(bench) == ([0, 0, 0] if how == "page taken" else before)
    assert known(bench) == (set(), set())


def test_one_that_runs_is_not_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(bench, MAKE) == b"done"
    view_type = type(bench.view(0))
    monkeypatch.setattr(view_type, "rmpadjust", lambda *_, **__: RmpResult.FAIL_INUSE)
    assert ask(bench, DROP).startswith(b"UNAVAILABLE")
    monkeypatch.undo()
    assert bench.vmsa(SMALL).efer & SVME
    assert known(bench) == ({SMALL}, {SMALL})
    assert ask(bench, DROP) == b"done"


def test_one_that_the_host_took_away(bench: Bench) -> None:
    """Its frame is never the kernel's again: the book keeps it."""
    assert ask(bench, MAKE) == b"done"
    assert bench.host.rmpupdate(SMALL, assigned=False) == RmpResult.SUCCESS
    assert ask(bench, DROP).startswith(b"UNAVAILABLE")
    assert bench.monitor.book.owner(SMALL) is Owner.ENCLAVE_VMSA
    assert bench.pvalidate(SMALL | 4)[0] == ResultCode.INVALID_ADDRESS


def test_snapshot(bench: Bench) -> None:
    assert ask(bench, MAKE) == b"done"
    monitor, services = VeilMon(), Services()
    monitor.restore(bench.monitor.save())
    assert bench.services is not None
    services.restore(bench.services.save())
    bench.resume(monitor, services)
    assert known(bench) == ({SMALL}, {SMALL})
    assert ask(bench, DROP) == b"done"


@given(st.binary(max_size=40))
def test_any_bytes_are_a_context_or_an_error(data: bytes) -> None:
    try:
        found = EnclaveContext.parse(data)
    except FormatError:
        return
    assert EnclaveContext.parse(found.pack()) == found
