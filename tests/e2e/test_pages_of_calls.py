# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that was taken over has the host take pages away that are its own, and that VeilMon uses when it is called:
calling area, VMSA, request block. If VeilMon ended by it, the machine would, and with it what nobody has fetched."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.hijack import Hijack, ask_by_msr
from tests.e2e.log_guest import log_reader
from tests.e2e.snapshots import Resume
from veil.formats.ghcb import MSR_PAGE_OPERATION_SHIFT, MsrRequest, PageOperation
from veil.host import RunResult


def _share(page: int) -> str:
    return ask_by_msr(page | PageOperation.SHARED << MSR_PAGE_OPERATION_SHIFT | MsrRequest.PAGE_STATE_CHANGE)


_CALL = ask_by_msr(MsrRequest.RUN_VMPL)
_SERVICES = ask_by_msr(1 << 32 | MsrRequest.RUN_VMPL)
_SPIN = "1: pause\njmp 1b"


def _calling_area(kernel: Hijack) -> int:
    caa = kernel.veilmon.domains.vcpus[0].kernel.caa
    assert caa is not None
    return caa


def _other_calling_area(kernel: Hijack) -> int:
    caa = kernel.veilmon.domains.vcpus[1].kernel.caa
    assert caa is not None
    return caa


def _other_vmsa(kernel: Hijack) -> int:
    return int(kernel.vm.hypervisor.vcpus[1].contexts[3].vmcb.vmsa_pa)


def _block(kernel: Hijack) -> int:
    return kernel.veilmon.state.blocks[0][0]


@pytest.mark.parametrize("page_of", [_calling_area, _other_calling_area, _other_vmsa, _block])
@pytest.mark.parametrize("then", [_CALL, _SERVICES, ""], ids=["VeilMon called", "services called", "users come"])
def test_the_log_is_fetched_all_the_same(resume: Resume, page_of: Callable[[Hijack], int], then: str) -> None:
    vm = resume(vcpus=2)
    before = log_reader(vm).head().size
    vm.hypervisor.kernel_end.is_outlived = True
    kernel = Hijack(vm)
    page = page_of(kernel)
    kernel.start(_share(page) + then + _SPIN)
    assert vm.hypervisor.run(until=lambda: not vm.machine.rmp.is_assigned(page), timeout=30) == RunResult.DONE
    assert vm.hypervisor.run(timeout=0.5) == RunResult.TIMEOUT
    assert len(list(log_reader(vm, timeout=60.0).fetch())) >= before > 0
