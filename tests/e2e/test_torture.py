# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot and work under it with permissions revoked and restored at random: thousands of nested page faults."""

from __future__ import annotations

import hashlib

import pytest

from tests.e2e.snapshots import OPEN_KERNEL
from tests.e2e.torture import Torture
from veil.cvm import ConfidentialVM
from veil.snp import ExitCode

_TROUBLE = ("WARNING:", "BUG:", "Oops", "Call Trace", "general protection", "rcu: INFO", "Kernel panic")
_WORK = "for i in 1 2 3; do dd if=/dev/zero bs=64k count=8 2>/dev/null | gzip -1 | gunzip | sha256sum; done"


def _boot_under_torture(vcpus: int, seed: int, memory: str, part: int | None = None) -> None:
    """`part`: so many faults while it boots, and as many while it works; all the time without. Each revocation goes
    through all of the memory."""
    # Lock-down changes rights too, of which the harness knows nothing: it would give back what they were before.
    vm = ConfidentialVM(memory, vcpus, fresh=True, services=OPEN_KERNEL)
    try:
        vm.launch()
        torture = Torture(vm, seed)
        exits = vm.hypervisor.counts.exits
        # From when the kernel makes its first calls: VeilMon has handed memory over by then.
        vm.hypervisor.run(until=lambda: exits.get(ExitCode.VMGEXIT, 0) > 30, timeout=30)
        if part is not None:
            torture.end = part
        torture.start()
        vm.connect()
        if part is not None:
            torture.stop()
            torture.end = torture.faults + part
            torture.start()
        work = vm.run(["/bin/sh", "-c", _WORK], timeout=120)
        expected = hashlib.sha256(bytes(512 << 10)).hexdigest()
        assert [line.split()[0] for line in work.stdout.decode().splitlines()] == [expected] * 3
        log = vm.run(["dmesg"]).stdout.decode()
        assert int(vm.run(["nproc"]).stdout) == vcpus
        torture.stop()
        assert vm.run(["true"]).exit_status == 0
        assert not [line for line in log.splitlines() if any(word in line for word in _TROUBLE)]
        assert torture.faults >= (100_000 if part is None else part + 2_000)
        # Deliveries of events were hit too, not only instructions.
        assert vm.machine.counters.redelivered > (1_000 if part is None else 10)
    finally:
        vm.close()


# One VCPU has no fault that two have not.
@pytest.mark.parametrize("vcpus", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_boot_under_torture(vcpus: int) -> None:
    _boot_under_torture(vcpus, seed=20231, memory="192M", part=8_000)


@pytest.mark.soak
@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("seed", range(10))
def test_boots_under_torture(vcpus: int, seed: int) -> None:
    _boot_under_torture(vcpus, seed, memory="512M")
