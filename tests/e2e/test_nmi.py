# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs of the stock kernel: one VCPU asks another one where it is."""

from __future__ import annotations

import pytest

from tests.e2e.snapshots import LOCKED_KERNEL, OPEN_KERNEL, Resume
from veil.image.services_image import ServicesImage

_ASK = """
sh -c 'while :; do :; done' & spins=$!
taskset -p 2 $spins >/dev/null 2>&1; taskset -p 1 $$ >/dev/null 2>&1
for i in 1 2 3; do echo l >/proc/sysrq-trigger; done
kill $spins
dmesg
"""


@pytest.mark.parametrize("services", [OPEN_KERNEL, LOCKED_KERNEL], ids=["open", "locked"])
def test_the_kernel_asks_another_cpu_by_nmi(resume: Resume, services: ServicesImage) -> None:
    vm = resume(vcpus=2, services=services)
    log = vm.run(["/bin/sh", "-c", _ASK], timeout=200).stdout.decode()
    asked = log.count("Sending NMI from CPU")
    assert asked == 3
    assert log.count("NMI backtrace for cpu") == 2 * asked  # its own, and the other one's
    assert "NMI backtrace for cpu 0" in log
    assert "NMI backtrace for cpu 1" in log
    for trouble in ("WARNING:", "BUG:", "Oops", "unknown reason"):
        assert trouble not in log
