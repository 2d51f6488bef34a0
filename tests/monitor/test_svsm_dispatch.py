# SPDX-License-Identifier: GPL-2.0-or-later
"""The serving loop: what is a call and what is not, what of the caller changes, and snapshots."""

from __future__ import annotations

import pytest

from tests.monitor.harness import (
    FREE,
    KERNEL_CAA,
    KERNEL_VMSA,
    NPF,
    PAGE,
    RUN_KERNEL,
    RUN_REFUSED,
    SMALL,
    SVME,
    VMGEXIT,
    Bench,
    Terminated,
    kernel_vmsa,
)
from veil.monitor import MonitorError, VeilMon
from veil.monitor.svsm_call import ResultCode
from veil.snp.hosted import HostedCpu

QUERY = 6


@pytest.fixture
def bench() -> Bench:
    return Bench(vcpus=2).boot()


def arm(bench: Bench, *, exit_code: int = VMGEXIT, pending: int = 1) -> None:
    """The registers and the calling area of a QUERY_PROTOCOL."""
    vmsa = bench.vmsa(KERNEL_VMSA)
    vmsa.guest_exit_code, vmsa.rax, vmsa.rcx = exit_code, QUERY, 1
    bench.kernel.write_u8(KERNEL_CAA, pending)


def vmsa_bytes(bench: Bench) -> bytes:
    return bytes(bench.memory.buf[KERNEL_VMSA : KERNEL_VMSA + PAGE])


@pytest.mark.parametrize(("exit_code", "pending"), [(VMGEXIT, 0), (NPF, 1), (0x60, 1), (0, 1), (0x1_0000_0403, 1)])
def test_an_exit_that_is_no_call_changes_nothing(bench: Bench, exit_code: int, pending: int) -> None:
    arm(bench, exit_code=exit_code, pending=pending)
    before = bench.rmp.dump(), vmsa_bytes(bench)
    bench.enter(0)
    assert (bench.rmp.dump(), vmsa_bytes(bench)) == before
    assert bench.kernel.read_u8(KERNEL_CAA) == pending
    assert bench.vcpus[0].vmpl == 3


def test_a_call_is_served_once(bench: Bench) -> None:
    arm(bench)
    bench.enter(0)
    assert bench.vmsa(KERNEL_VMSA).rax == 0
    bench.vmsa(KERNEL_VMSA).rax = 77
    bench.enter(0)
    assert bench.vmsa(KERNEL_VMSA).rax == 77


def test_any_value_of_call_pending_is_a_call(bench: Bench) -> None:
    arm(bench, pending=0xFF)
    bench.enter(0)
    assert bench.vmsa(KERNEL_VMSA).rcx == 1 << 32 | 1
    assert bench.kernel.read_u8(KERNEL_CAA) == 0


def test_only_results_change(bench: Bench) -> None:
    for number, name in enumerate(("rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "rdx", "rip", "rflags")):
        setattr(bench.vmsa(KERNEL_VMSA), name, number + 1)
    arm(bench)
    before = bytearray(vmsa_bytes(bench))
    bench.enter(0)
    after = vmsa_bytes(bench)
    changed = {offset & ~7 for offset in range(PAGE) if before[offset] != after[offset]}
    assert changed == {0x1F8, 0x308}


def test_the_caller_cannot_run_while_it_is_served(bench: Bench) -> None:
    """EFER.SVME is clear while the host splits an RMP entry in the middle of a call."""
    seen: list[int] = []
    psmash = bench.host.psmash

    def spy(gpa: int) -> object:
        seen.append(bench.vmsa(KERNEL_VMSA).efer & SVME)
        return psmash(gpa)

    bench.host = _Spy(bench.host, spy)  # type: ignore[assignment]
    assert bench.pvalidate(FREE) == (0, 1)
    assert seen == [0]
    assert bench.vmsa(KERNEL_VMSA).efer & SVME


class _Spy:
    def __init__(self, inner: object, psmash: object) -> None:
        self._inner = inner
        self.psmash = psmash

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_host_that_runs_the_monitor_of_another_vcpu(bench: Bench) -> None:
    arm(bench)
    bench.enter(1)
    assert bench.vmsa(KERNEL_VMSA).rax == QUERY
    assert bench.vcpus[1].parked
    bench.enter(0)
    assert bench.vmsa(KERNEL_VMSA).rcx == 1 << 32 | 1


def test_ap_runs_its_kernel_if_it_was_created_while_it_started() -> None:
    """CREATE_VCPU and AP creation come before the AP's monitor ran at all."""
    bench = Bench(vcpus=2)
    bench.enter(0)
    bench.kernel.write(SMALL, kernel_vmsa())
    assert bench.create_vcpu(SMALL, SMALL + PAGE, 1) == ResultCode.SUCCESS
    bench.enter(1)
    assert bench.vcpus[1].vmpl == 3
    assert bench.log[-1] == RUN_KERNEL


def test_ap_waits_if_the_host_does_not_know_its_kernel_yet() -> None:
    bench = Bench(vcpus=2)
    bench.enter(0)
    bench.kernel.write(SMALL, kernel_vmsa())
    assert bench.call(0, 2, SMALL, SMALL + PAGE, 1).rax == ResultCode.SUCCESS
    bench.enter(1)
    assert bench.vcpus[1].parked
    assert bench.log[-2:] == [RUN_KERNEL, 0x006]
    bench.vcpus[1].vmsas[3] = SMALL
    assert bench.call(0, QUERY, 1, vcpu=1).rcx
    assert bench.vcpus[1].vmcb.ghcb_gpa != RUN_REFUSED


# Snapshots


def test_snapshot(bench: Bench) -> None:
    bench.kernel.write(SMALL, kernel_vmsa())
    assert bench.create_vcpu(SMALL, SMALL + PAGE, 1) == ResultCode.SUCCESS
    assert bench.call(0, 0, SMALL + 2 * PAGE).rax == ResultCode.SUCCESS
    old = bench.monitor
    monitor = VeilMon()
    monitor.restore(old.save())
    assert monitor.save() == old.save()
    assert [monitor.book.owner(gpa) for gpa in range(0, 1 << 23, PAGE)] == [
        old.book.owner(gpa) for gpa in range(0, 1 << 23, PAGE)
    ]
    bench.resume(monitor)
    assert bench.call(0, QUERY, 1).rcx == 1 << 32 | 1
    assert bench.call(0, QUERY, 1, vcpu=1).rcx == 1 << 32 | 1
    bench.check()
    assert bench.call(0, 3, SMALL).rax == ResultCode.SUCCESS


def test_snapshot_in_the_middle_of_a_call(bench: Bench) -> None:
    """The host was about to split an RMP entry: the call is still pending, and is served after all."""
    arm(bench)
    at = KERNEL_CAA + 8
    bench.kernel.write(at, (1).to_bytes(8, "little") + FREE.to_bytes(8, "little"))
    vmsa = bench.vmsa(KERNEL_VMSA)
    vmsa.rax, vmsa.rcx = 1, at
    vcpu = bench.vcpus[0]
    assert vcpu.steps is not None
    assert vcpu.cpu is not None
    bench.rmp.vmsa_in_use = vcpu.vmsas[0]
    next(vcpu.steps)
    assert vcpu.cpu.fault is not None
    monitor = VeilMon()
    monitor.restore(bench.monitor.save())
    bench.resume(monitor)
    bench.enter(0)
    assert bench.vmsa(KERNEL_VMSA).rax == 0
    assert bench.vmsa(KERNEL_VMSA).efer & SVME
    assert not bench.kernel.allows(FREE, 1)
    assert bench.kernel.allows(FREE + PAGE, 15)


def test_snapshot_of_a_parked_vcpu(bench: Bench) -> None:
    monitor = VeilMon()
    monitor.restore(bench.monitor.save())
    bench.resume(monitor)
    bench.enter(1)
    assert bench.vcpus[1].parked


def test_snapshot_without_that_vcpu(bench: Bench) -> None:
    monitor = VeilMon()
    monitor.restore(bench.monitor.save())
    cpu = bench.hosted_cpu(bench.vcpus[0])
    cpu.vmsa_gpa = SMALL
    next(monitor.resume(cpu))
    assert monitor.last_error
    assert "snapshot" in monitor.last_error
    assert isinstance(bench.hosted_cpu(bench.vcpus[0]), HostedCpu)


def test_save_before_boot() -> None:
    with pytest.raises(MonitorError, match="not booted"):
        VeilMon().save()


def test_terminated_monitor_stays_terminated() -> None:
    bench = Bench(template=bytes(PAGE))
    with pytest.raises(Terminated):
        bench.boot()
    with pytest.raises(Terminated):
        bench.enter(0)
