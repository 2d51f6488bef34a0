# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels with and without the monitor, and several VCPUs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tests.e2e.log_guest import log_reader
from tests.e2e.snapshots import OPEN_KERNEL, Resume
from veil.cvm import ConfidentialVM
from veil.errors import VeilError
from veil.host import PageStateEvent
from veil.snp import EntryFlag


def test_a_kernel_without_svsm_cannot_run_under_the_monitor() -> None:
    message = r"6\.1 .*knows no SVSM.*--no-monitor"
    with pytest.raises(VeilError, match=message), ConfidentialVM(kernel="6.1", fresh=True):
        pass


def test_without_the_driver_the_services_hear_nothing_and_the_user_is_told() -> None:
    said = list[str]()
    with ConfidentialVM(driver=False, services=OPEN_KERNEL, fresh=True, progress=said.append) as vm:
        assert "no driver: services that hear nothing of the kernel: VeilS-LOG" in said
        assert vm.run(["ls", "/dev/veil"]).exit_status != 0
        vm.wait(1.5)
        assert log_reader(vm).head().last_ns == 0


@pytest.mark.parametrize("series", ["6.12", pytest.param("6.1", marks=pytest.mark.soak)])
def test_kernels_at_vmpl_0_use_pvalidate_and_rmpadjust_themselves(series: str) -> None:
    vm = ConfidentialVM(kernel=series, vcpus=2, monitor=False, fresh=True)
    changes: list[PageStateEvent] = []
    try:
        vm.launch()
        vm.hypervisor.on_event = lambda event: changes.append(event) if isinstance(event, PageStateEvent) else None
        vm.connect()
        log = vm.run(["dmesg"]).stdout.decode()
        assert vm.run(["uname", "-r"]).stdout.decode().startswith(f"{series}.")
        assert int(vm.run(["nproc"]).stdout) == 2
        assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in log
        assert "svsm" not in vm.run(["cat", "/proc/cpuinfo"]).stdout.decode()
        # PVALIDATE: a shared page that nobody rescinded would be refused to the kernel's C=0 accesses, and the
        # firmware's few instructions validated all memory before.
        shared = [change for change in changes if not change.private]
        assert len(shared) > 500
        # RMPADJUST: the second CPU's VMSA is the kernel's own making.
        flags = vm.machine.rmp.entries["flags"]
        assert int(np.count_nonzero(flags & EntryFlag.VMSA)) == 2
    finally:
        vm.close()


@pytest.mark.soak
def test_parallel_work_on_several_vcpus_with_more_than_3_gib_of_memory() -> None:
    vcpus = 4
    with ConfidentialVM("4G", vcpus, fresh=True) as vm:
        assert int(vm.run(["awk", "/MemTotal/ {print $2}", "/proc/meminfo"]).stdout) > 3_700_000
        assert int(vm.run(["nproc"]).stdout) == vcpus
        jobs = 2 * vcpus
        script = (
            "".join(f"(seq {n} {n + 5000} | gzip | gunzip | sha256sum > /tmp/{n}) &\n" for n in range(jobs))
            + "wait\n"
            + "".join(f"cat /tmp/{n}\n" for n in range(jobs))
        )
        lines = vm.run(["/bin/sh", "-c", script], timeout=60).stdout.decode().splitlines()
        for n in range(jobs):
            text = "".join(f"{number}\n" for number in range(n, n + 5001))
            assert lines[n].split()[0] == hashlib.sha256(text.encode()).hexdigest()
        busy = vm.run(["grep", "^cpu[0-9]", "/proc/stat"]).stdout.decode().splitlines()
        assert len(busy) == vcpus
        # Every VCPU has a context in VeilMon's domain, in the services' and in the kernel's.
        for vcpu in vm.hypervisor.vcpus:
            assert sorted(vcpu.contexts) == [0, 1, 3]
        log = vm.run(["dmesg"]).stdout.decode()
        assert "WARNING:" not in log


@pytest.mark.open_kernel("a locked-down kernel starts no processor")
def test_a_cpu_goes_and_comes_back(resume: Resume) -> None:
    vm = resume(vcpus=2)
    online = "/sys/devices/system/cpu/cpu1/online"
    for value, cpus in (("0", 1), ("1", 2)):
        vm.run(["/bin/sh", "-c", f"echo {value} > {online}"], timeout=20)
        assert int(vm.run(["nproc"]).stdout) == cpus
