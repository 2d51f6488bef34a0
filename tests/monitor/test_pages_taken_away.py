# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilMon uses of its caller's can be gone: a kernel may ask the host to take its own pages away.

VeilMon must live on. If it ended, the machine would, and with it what the services keep.
"""

from __future__ import annotations

import struct

import pytest

from tests.guarding import ALLOW, PROTECT, Guard
from tests.monitor.faults import fault, tables
from tests.monitor.harness import FREE, KERNEL_CAA, NPF, PAGE, SMALL, VMGEXIT, Bench, kernel_vmsa
from veil.formats.service_events import RefusedAccess, Verdict
from veil.formats.status import Status
from veil.monitor.svsm_call import ResultCode
from veil.services import Asking, MonitorRefused, ServiceDomain
from veil.snp.rmp import RmpResult

RUN_SERVICES = 1 << 32 | 0x016
ATTESTATION, SERVICES_MANIFEST = 1, 0
QUERY = 6
#: in entries of 4 KiB
VMSA, CAA = SMALL + 8 * PAGE, SMALL + 9 * PAGE
REQUEST = FREE


class Guarding(Guard):
    asks = False
    refused: Status | None = None

    def access_refused(self, access: RefusedAccess) -> Verdict | Asking[Verdict]:
        return self._ask(access) if self.asks else super().access_refused(access)

    def _ask(self, access: RefusedAccess) -> Asking[Verdict]:
        try:
            yield from self.context.monitor.read_virtual(1, SMALL, 8)
        except MonitorRefused as refused:
            self.refused = refused.status
        return access.resume()


class Services(ServiceDomain):
    service_types = (Guarding,)


@pytest.fixture
def bench() -> Bench:
    """VCPU 1 runs a context that the kernel made, in memory of its own."""
    bench = Bench(vcpus=2, services=Services).boot()
    tables(bench)
    assert bench.ask(Guard.number, PROTECT, struct.pack("<Q", SMALL)) == (Status.OK, b"")
    assert bench.ask(Guard.number, ALLOW, b"\1")[0] == Status.OK
    bench.kernel.write(VMSA, kernel_vmsa())
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.SUCCESS
    bench.enter(1)
    return bench


def take(bench: Bench, gpa: int) -> None:
    """The host does what the kernel asks of it."""
    assert bench.host.rmpupdate(gpa, assigned=False) == RmpResult.SUCCESS


def lives(bench: Bench) -> bool:
    """Does VeilMon answer on the other VCPU?"""
    return bench.call(0, QUERY, 1).rax == ResultCode.SUCCESS


@pytest.mark.parametrize("exit_code", [VMGEXIT, NPF])
@pytest.mark.parametrize("page", [VMSA, CAA])
def test_before_a_call(bench: Bench, page: int, exit_code: int) -> None:
    bench.vmsa(VMSA).guest_exit_code = exit_code
    take(bench, page)
    bench.enter(1)
    assert bench.vcpus[1].vmpl == 3
    assert lives(bench)


def test_the_boot_vcpus_calling_area(bench: Bench) -> None:
    """The kernel's from the launch on."""
    assert bench.caa(0) == KERNEL_CAA
    take(bench, KERNEL_CAA)
    bench.enter(0)
    assert bench.vcpus[0].vmpl == 3
    assert bench.call(0, QUERY, 1, vcpu=1).rax == ResultCode.SUCCESS


def test_while_a_report_is_made(bench: Bench) -> None:
    def meanwhile(request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        take(bench, VMSA)
        return bench.carry(request, response, data)

    bench.on_message = meanwhile
    # 58019, table 11
    operation = struct.pack("<QI4xQH6xQI4x", FREE + PAGE, PAGE, FREE + 2 * PAGE, 64, FREE + 3 * PAGE, PAGE)
    bench.kernel.write(REQUEST, operation.ljust(0x58, b"\0"))
    vmsa = bench.vmsa(VMSA)
    vmsa.guest_exit_code, vmsa.rax, vmsa.rcx = VMGEXIT, ATTESTATION << 32 | SERVICES_MANIFEST, REQUEST
    bench.kernel.write_u8(CAA, 1)
    bench.enter(1)
    assert not bench.rmp.is_assigned(VMSA)
    assert lives(bench)


@pytest.mark.parametrize("asks", [False, True])
def test_while_a_refused_access_is_decided(bench: Bench, asks: bool) -> None:
    def meanwhile(request: int) -> None:
        if request == RUN_SERVICES and bench.rmp.is_assigned(VMSA):
            take(bench, VMSA)

    assert bench.services is not None
    (guard,) = bench.services.services
    assert isinstance(guard, Guarding)
    guard.asks = asks
    bench.on_request = meanwhile
    fault(bench, vcpu=1)
    assert not bench.rmp.is_assigned(VMSA)
    assert guard.refused == (Status.BAD_REQUEST if asks else None)
    assert bench.monitor.domains.vcpus[1].unfinished is None
    assert lives(bench)
