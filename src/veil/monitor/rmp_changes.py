# SPDX-License-Identifier: GPL-2.0-or-later
"""PVALIDATE and RMPADJUST, at boot and later (generators: a refusal that the host can resolve is given to it)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.termination import MonitorReason
from veil.monitor.errors import MonitorError
from veil.snp.errors import RmpViolation
from veil.snp.hosted import HostedCpu
from veil.snp.rmp import FAULT_SIZEM, PageSize, Permission, RmpResult

__all__ = ["adjust_page", "grant_range", "retry", "validate_range"]


_T = TypeVar("_T")


def retry(cpu: HostedCpu, operation: Callable[[], _T]) -> Generator[None, None, _T]:
    """Do an RMP operation; while it meets a 2 MiB entry that must be split first, let the host do that."""
    while True:
        try:
            return operation()
        except RmpViolation as violation:
            if not violation.fault & FAULT_SIZEM:
                raise
            cpu.nested_fault(violation)
        yield


def _pieces(gpa: int, end: int) -> Generator[tuple[int, PageSize], None, None]:
    while gpa < end:
        large = gpa % PAGE_SIZE_2M == 0 and end - gpa >= PAGE_SIZE_2M
        yield gpa, PageSize.SIZE_2M if large else PageSize.SIZE_4K
        gpa += PAGE_SIZE_2M if large else PAGE_SIZE


def validate_range(cpu: HostedCpu, gpa: int, size: int) -> Generator[None, None, None]:
    """PVALIDATE memory that the launch left alone.

    A page that was validated before is one that the host slipped in at launch, or that it mapped twice: stop.
    """
    for start, page_size in _pieces(gpa, gpa + size):
        if page_size and (yield from _validate(cpu, start, page_size)):
            continue
        for page in range(start, start + page_size.pages * PAGE_SIZE, PAGE_SIZE):
            if not (yield from _validate(cpu, page, PageSize.SIZE_4K)):
                raise MonitorError(MonitorReason.MEMORY_NOT_VALIDATED, f"page {page:#x} cannot be validated")


def _validate(cpu: HostedCpu, gpa: int, size: PageSize) -> Generator[None, None, bool]:
    code, unchanged = yield from retry(cpu, lambda: cpu.view.pvalidate(gpa, size=size, validate=True))
    if code == RmpResult.FAIL_SIZEMISMATCH and size:
        return False
    if code != RmpResult.SUCCESS:
        raise MonitorError(MonitorReason.MEMORY_NOT_VALIDATED, f"page {gpa:#x} cannot be validated: {code.name}")
    if unchanged:
        raise MonitorError(MonitorReason.MEMORY_ALREADY_VALIDATED, f"page {gpa:#x} was validated already")
    return True


def grant_range(cpu: HostedCpu, gpa: int, size: int, vmpl: int, permissions: Permission) -> Generator[None, None, None]:
    """RMPADJUST a range for a level, by 2 MiB where the RMP's entries allow it."""
    end = gpa + size
    small = gpa
    # Pages of 4 KiB are left behind until a piece of 2 MiB, or the end, is reached.
    for start in range(-(-gpa // PAGE_SIZE_2M) * PAGE_SIZE_2M, end - PAGE_SIZE_2M + 1, PAGE_SIZE_2M):
        if (yield from _grant_large(cpu, start, vmpl, permissions)):
            yield from _grant_small(cpu, small, start, vmpl, permissions)
            small = start + PAGE_SIZE_2M
    yield from _grant_small(cpu, small, end, vmpl, permissions)


def _grant_large(cpu: HostedCpu, gpa: int, vmpl: int, permissions: Permission) -> Generator[None, None, bool]:
    code = yield from retry(
        cpu, lambda: cpu.view.rmpadjust(gpa, size=PageSize.SIZE_2M, vmpl=vmpl, permissions=permissions)
    )
    if code == RmpResult.FAIL_SIZEMISMATCH:
        return False
    _check_grant(code, gpa)
    return True


def _grant_small(cpu: HostedCpu, gpa: int, end: int, vmpl: int, permissions: Permission) -> Generator[None, None, None]:
    pages = (gpa, (end - gpa) // PAGE_SIZE, vmpl, permissions)
    _check_grant(*(yield from retry(cpu, lambda: cpu.view.rmpadjust_all([pages]))))


def _check_grant(code: RmpResult, gpa: int) -> None:
    if code != RmpResult.SUCCESS:
        raise MonitorError(MonitorReason.MEMORY_NOT_VALIDATED, f"page {gpa:#x} cannot be granted: {code.name}")


def adjust_page(
    cpu: HostedCpu, gpa: int, vmpl: int, permissions: Permission, *, vmsa: bool = False
) -> Generator[None, None, None]:
    """RMPADJUST one page, which must succeed."""
    code = yield from retry(cpu, lambda: cpu.view.rmpadjust(gpa, vmpl=vmpl, permissions=permissions, vmsa=vmsa))
    if code != RmpResult.SUCCESS:
        raise MonitorError(MonitorReason.BAD_KERNEL_VMSA, f"the page {gpa:#x} cannot become a VMSA: {code.name}")
