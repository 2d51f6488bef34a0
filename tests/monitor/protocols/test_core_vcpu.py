# SPDX-License-Identifier: GPL-2.0-or-later
"""CREATE_VCPU and DELETE_VCPU: contexts of VMPL 3 come and go, and none of another level can be made."""

from __future__ import annotations

import pytest

from tests.monitor.harness import (
    FREE,
    KERNEL_CAA,
    KERNEL_VMSA,
    MONITOR,
    PAGE,
    RAM,
    SERVICES,
    SMALL,
    SVME,
    Bench,
    kernel_vmsa,
)
from veil.monitor import Owner
from veil.monitor.svsm_call import ResultCode
from veil.snp.errors import RmpViolation
from veil.snp.rmp import RmpResult

VMSA, CAA = SMALL, SMALL + PAGE
DELETE = 3


@pytest.fixture
def bench() -> Bench:
    bench = Bench(vcpus=2).boot()
    bench.kernel.write(VMSA, kernel_vmsa(rip=0x1234))
    bench.kernel.write(CAA, b"\xff" * PAGE)
    return bench


def test_create(bench: Bench) -> None:
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.SUCCESS
    assert bench.rmp.is_vmsa(VMSA)
    assert bench.kernel.read(VMSA, PAGE) == kernel_vmsa(rip=0x1234)
    for access in (2, 4, 8):
        assert not bench.kernel.allows(VMSA, access)
    assert bench.kernel.read_u64(CAA) == 0
    assert bench.caa(1) == CAA
    assert bench.monitor.book.owner(VMSA) == Owner.VMSA
    bench.check()
    # Its kernel context calls on its own.
    assert bench.call(0, 6, 1, vcpu=1)[:2] == (0, 1 << 32 | 1)
    assert bench.call(0, 6, 1)[:2] == (0, 1 << 32 | 1)


def test_kernel_cannot_write_its_context(bench: Bench) -> None:
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.SUCCESS
    with pytest.raises(RmpViolation):
        bench.kernel.write_u8(VMSA + 0xCA, 0)
    assert bench.pvalidate(VMSA)[0] == ResultCode.INVALID_ADDRESS
    assert bench.pvalidate(CAA)[0] == ResultCode.INVALID_ADDRESS
    assert bench.kernel.rmpadjust(VMSA, vmpl=3, permissions=3) == RmpResult.FAIL_PERMISSION


@pytest.mark.parametrize(
    "fields",
    [{"vmpl": 0}, {"vmpl": 1}, {"vmpl": 2}, {"vmpl": 4}, {"efer": 0xD00}, {"sev_features": 0}, {"sev_features": 3}],
)
def test_bad_contexts(bench: Bench, fields: dict[str, int]) -> None:
    content = kernel_vmsa(**fields)
    bench.kernel.write(VMSA, content)
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.INVALID_PARAMETER
    # Everything is as it was.
    assert bench.kernel.allows(VMSA, 15, PAGE)
    assert bench.kernel.read(VMSA, PAGE) == content
    assert bench.kernel.read(CAA, 8) == b"\xff" * 8
    assert not bench.rmp.is_vmsa(VMSA)
    assert bench.monitor.book.owner(VMSA) == bench.monitor.book.owner(CAA) == Owner.KERNEL
    assert bench.monitor.domains.vcpus[1].kernel.vmsas == {}
    bench.check()


@pytest.mark.parametrize("other", [MONITOR, SERVICES, KERNEL_VMSA, RAM, (1 << 64) - PAGE, 1 << 51, SMALL + 8])
def test_bad_addresses(bench: Bench, other: int) -> None:
    before = bench.rmp.dump()
    assert bench.create_vcpu(other, CAA, 1) == ResultCode.INVALID_ADDRESS
    assert bench.create_vcpu(VMSA, other, 1) == ResultCode.INVALID_ADDRESS
    assert bench.rmp.dump() == before


def test_calling_areas_are_not_shared(bench: Bench) -> None:
    assert bench.create_vcpu(VMSA, VMSA, 1) == ResultCode.INVALID_ADDRESS
    assert bench.create_vcpu(VMSA, KERNEL_CAA, 1) == ResultCode.INVALID_ADDRESS
    assert bench.create_vcpu(KERNEL_CAA, CAA, 1) == ResultCode.INVALID_ADDRESS


@pytest.mark.parametrize("apic_id", [2, 64, 1 << 32, (1 << 32) | 1, (1 << 64) - 1])
def test_bad_apic_ids(bench: Bench, apic_id: int) -> None:
    assert bench.call(0, 2, VMSA, CAA, apic_id).rax == ResultCode.INVALID_PARAMETER


def test_pages_that_are_not_validated(bench: Bench) -> None:
    gone = SMALL + 2 * PAGE
    assert bench.pvalidate(gone)[0] == ResultCode.SUCCESS
    assert bench.create_vcpu(gone, CAA, 1) == ResultCode.INVALID_ADDRESS
    assert bench.create_vcpu(VMSA, gone, 1) == ResultCode.INVALID_ADDRESS
    assert bench.monitor.book.owner(gone) == bench.monitor.book.owner(VMSA) == Owner.KERNEL
    assert bench.kernel.allows(VMSA, 15)
    assert bench.host.rmpupdate(gone, assigned=False) == RmpResult.SUCCESS
    assert bench.create_vcpu(gone, CAA, 1) == ResultCode.INVALID_ADDRESS
    assert bench.create_vcpu(VMSA, gone, 1) == ResultCode.INVALID_ADDRESS
    bench.check()


def test_context_in_a_large_entry(bench: Bench) -> None:
    bench.kernel.write(FREE, kernel_vmsa())
    assert bench.create_vcpu(FREE, FREE + PAGE, 1) == ResultCode.SUCCESS
    assert bench.splits == 1
    assert bench.kernel.allows(FREE + 2 * PAGE, 15)
    bench.check()


def test_delete(bench: Bench) -> None:
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.SUCCESS
    assert bench.call(0, DELETE, VMSA).rax == ResultCode.SUCCESS
    assert not bench.rmp.is_vmsa(VMSA)
    assert not bench.vmsa(VMSA).efer & SVME
    assert bench.kernel.allows(VMSA, 15, PAGE)
    assert bench.monitor.book.owner(VMSA) == bench.monitor.book.owner(CAA) == Owner.KERNEL
    assert bench.call(0, DELETE, VMSA).rax == ResultCode.INVALID_PARAMETER
    # The VCPU has no kernel context: it waits.
    bench.enter(1)
    assert bench.vcpus[1].parked
    bench.check()


@pytest.mark.parametrize("vmsa", [CAA, MONITOR, MONITOR + 2 * PAGE, MONITOR + 8 * PAGE, VMSA + 1, RAM, 1 << 63])
def test_delete_what_is_no_context(bench: Bench, vmsa: int) -> None:
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.SUCCESS
    before = bench.rmp.dump()
    assert bench.call(0, DELETE, vmsa).rax == ResultCode.INVALID_PARAMETER
    assert bench.rmp.dump() == before


def test_caller_cannot_delete_itself(bench: Bench) -> None:
    assert bench.call(0, DELETE, KERNEL_VMSA).rax == ResultCode.INVALID_PARAMETER
    assert bench.call(0, 6, 1).rcx


def test_the_boot_context_is_not_the_guests_memory(bench: Bench) -> None:
    """It lies in the monitor's region, and goes back there."""
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.SUCCESS
    assert bench.call(0, DELETE, KERNEL_VMSA, vcpu=1).rax == ResultCode.SUCCESS
    assert not bench.rmp.is_vmsa(KERNEL_VMSA)
    assert not bench.kernel.allows(KERNEL_VMSA, 1)
    assert bench.monitor.book.owner(KERNEL_VMSA) == Owner.MONITOR
    assert bench.monitor.book.owner(KERNEL_CAA) == Owner.KERNEL
    bench.check()


def test_cpu_goes_and_comes_back(bench: Bench) -> None:
    """Linux: CREATE_VCPU with a new VMSA and the old calling area, then DELETE_VCPU of the old VMSA."""
    assert bench.create_vcpu(VMSA, CAA, 1) == ResultCode.SUCCESS
    new = SMALL + 2 * PAGE
    bench.kernel.write(new, kernel_vmsa())
    assert bench.create_vcpu(new, CAA, 1) == ResultCode.SUCCESS
    bench.check()
    assert bench.call(0, DELETE, VMSA).rax == ResultCode.SUCCESS
    assert bench.monitor.book.owner(CAA) == Owner.CAA
    assert bench.call(0, 6, 1, vcpu=1).rcx
    bench.check()


def test_a_context_for_the_own_vcpu(bench: Bench) -> None:
    """The caller gets its answer, and from then on the new context is the one that is served."""
    assert bench.call(0, 2, VMSA, CAA, 0).rax == ResultCode.SUCCESS
    bench.vcpus[0].vmsas[3] = VMSA
    assert bench.call(0, 6, 1).rcx
    bench.check()
