# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware at VMPL 3 validates its memory itself: VeilMon leaves it alone, then grants what is asked for, zeroed."""

from __future__ import annotations

import pytest

from tests.monitor.harness import (
    CPUID,
    FREE,
    FREE_2M,
    HEADER,
    KERNEL,
    KERNEL_CPUID,
    KERNEL_SECRETS,
    LARGE,
    MONITOR,
    PAGE,
    SECRETS,
    SERVICES,
    SMALL,
    Bench,
    parameters,
)
from veil.monitor import Option
from veil.monitor.svsm_call import ResultCode
from veil.snp.errors import RmpViolation
from veil.snp.layouts import SecretsPage
from veil.snp.rmp import FAULT_NOT_VALIDATED, RmpResult

_VALIDATE, _SIZE_2M = 4, 1
#: Secrets page, CPUID page and calling area, which VeilMon fills.
_OWN_PAGES = (KERNEL_SECRETS, 3 * PAGE)


@pytest.fixture
def bench() -> Bench:
    launched = [(KERNEL, PAGE), (HEADER, CPUID + PAGE - HEADER), _OWN_PAGES]
    bench = Bench(layout=parameters(options=Option.KERNEL_VALIDATES, launched=launched))
    for gpa in range(KERNEL_SECRETS, KERNEL_SECRETS + 3 * PAGE, PAGE):
        assert bench.rmp.launch_page(gpa) == RmpResult.SUCCESS
    return bench.boot()


def test_what_was_launched_is_the_firmwares(bench: Bench) -> None:
    bench.check()
    for gpa in (KERNEL, KERNEL_SECRETS, KERNEL_CPUID):
        assert bench.kernel.allows(gpa, 15, PAGE)
    secrets = SecretsPage.from_buffer_copy(bench.kernel.read(KERNEL_SECRETS, PAGE))
    assert (secrets.svsm_base, secrets.svsm_guest_vmpl) == (MONITOR, 3)


def test_all_else_is_not_validated(bench: Bench) -> None:
    for gpa in (0, SMALL, FREE, FREE_2M, MONITOR - PAGE):
        assert not bench.kernel.allows(gpa, 1)
        with pytest.raises(RmpViolation) as caught:
            bench.view(0).rmpquery(gpa, vmpl=3)
        assert caught.value.fault & FAULT_NOT_VALIDATED


def test_it_gets_what_it_validates(bench: Bench) -> None:
    bench.memory.buf[SMALL : SMALL + 6] = b"secret"
    assert bench.pvalidate(SMALL | _VALIDATE, FREE_2M | _VALIDATE | _SIZE_2M) == (ResultCode.SUCCESS, 2)
    assert bench.kernel.allows(SMALL, 15, PAGE)
    assert bench.kernel.allows(FREE_2M, 15, LARGE)
    assert bench.kernel.read(SMALL, 6) == bytes(6)
    bench.check()


def test_a_page_that_is_validated_is_no_news(bench: Bench) -> None:
    """It would not have been zeroed: firmware takes this answer for an attack."""
    for gpa in (SMALL, KERNEL):
        bench.pvalidate(gpa | _VALIDATE)
        assert bench.pvalidate(gpa | _VALIDATE) == (ResultCode.FAIL_UNCHANGED, 0)


@pytest.mark.parametrize("gpa", [MONITOR, SECRETS, SERVICES])
def test_what_is_kept_from_it(bench: Bench, gpa: int) -> None:
    assert bench.pvalidate(gpa | _VALIDATE) == (ResultCode.INVALID_ADDRESS, 0)
    assert not bench.kernel.allows(gpa, 1)
    bench.check()
