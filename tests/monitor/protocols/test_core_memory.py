# SPDX-License-Identifier: GPL-2.0-or-later
"""REMAP_CA, PVALIDATE, and the calls that ask about the monitor."""

from __future__ import annotations

import struct

import pytest

from tests.monitor.harness import (
    FREE,
    FREE_2M,
    GHCB,
    KERNEL_CAA,
    KERNEL_VMSA,
    LARGE,
    MONITOR,
    PAGE,
    RAM,
    SECRETS,
    SERVICES,
    SMALL,
    Answer,
    Bench,
)
from veil.monitor import Owner
from veil.monitor.svsm_call import ResultCode
from veil.snp.errors import RmpViolation
from veil.snp.rmp import PageSize, RmpResult

VALIDATE, IGNORE_CF, SIZE_2M = 4, 8, 1
OK = (ResultCode.SUCCESS, 1)
REMAP_CA, PVALIDATE, DEPOSIT, WITHDRAW, QUERY, VTOM = 0, 1, 4, 5, 6, 7


@pytest.fixture
def bench() -> Bench:
    return Bench().boot()


# Who asks what


def test_query_protocol(bench: Bench) -> None:
    assert bench.call(0, QUERY, 0 << 32 | 1) == Answer(0, 1 << 32 | 1, 0, 0, 0, 0)
    assert bench.call(0, QUERY, 0 << 32 | 2).rcx == 0
    assert bench.call(0, QUERY, 0 << 32 | 0).rcx == 0
    assert bench.call(0, QUERY, 1 << 32 | 1).rcx == 1 << 32 | 1
    assert bench.call(0, QUERY, 2 << 32 | 1).rcx == 0


def test_virtual_tom_is_not_offered(bench: Bench) -> None:
    assert bench.call(0, VTOM, 1)[:2] == (ResultCode.SUCCESS, 0)
    assert bench.call(0, VTOM, 0)[:2] == (ResultCode.INVALID_REQUEST, 0)


@pytest.mark.parametrize("call", [DEPOSIT, WITHDRAW, 8, 0xFFFFFFFF])
def test_unsupported_calls(bench: Bench, call: int) -> None:
    answer = bench.call(0, call, 11, 12, 13, 14)
    assert answer == Answer(ResultCode.UNSUPPORTED_CALL, 11, 12, 13, 14, 0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 0xFFFFFFFF])
def test_unsupported_protocols(bench: Bench, protocol: int) -> None:
    answer = bench.call(protocol, 0, 11, 12, 13, 14)
    assert answer == Answer(ResultCode.UNSUPPORTED_PROTOCOL, 11, 12, 13, 14, 0)


# REMAP_CA


def test_remap(bench: Bench) -> None:
    bench.kernel.write(SMALL, b"\xff" * 16)
    assert bench.call(0, REMAP_CA, SMALL).rax == ResultCode.SUCCESS
    assert bench.caa() == SMALL
    assert bench.kernel.read(SMALL, 16) == bytes(8) + b"\xff" * 8
    assert bench.kernel.read_u8(KERNEL_CAA) == 0
    assert bench.monitor.book.owner(SMALL) == Owner.CAA
    assert bench.monitor.book.owner(KERNEL_CAA) == Owner.KERNEL
    assert bench.call(0, QUERY, 1).rcx
    # The old area is an ordinary page now, the new one is not.
    assert bench.pvalidate(KERNEL_CAA) == OK
    assert bench.pvalidate(SMALL)[0] == ResultCode.INVALID_ADDRESS
    bench.check()


def test_remap_to_the_same(bench: Bench) -> None:
    bench.kernel.write(KERNEL_CAA + 1, b"\x01\x02")
    assert bench.call(0, REMAP_CA, KERNEL_CAA) == Answer(0, KERNEL_CAA, 0, 0, 0, 0)
    assert bench.kernel.read(KERNEL_CAA, 3) == b"\x00\x01\x02"


@pytest.mark.parametrize(
    "gpa", [MONITOR, SECRETS, SERVICES, KERNEL_VMSA, GHCB, RAM, 1 << 51, (1 << 64) - PAGE, SMALL | 1 << 51]
)
def test_remap_to_what_is_not_the_guests(bench: Bench, gpa: int) -> None:
    assert bench.call(0, REMAP_CA, gpa).rax == ResultCode.INVALID_ADDRESS
    assert bench.caa() == KERNEL_CAA
    bench.check()


@pytest.mark.parametrize("gpa", [SMALL + 8, SMALL + 1, MONITOR + 1, 3])
def test_remap_to_unaligned(bench: Bench, gpa: int) -> None:
    assert bench.call(0, REMAP_CA, gpa).rax == ResultCode.INVALID_PARAMETER


def test_remap_to_a_page_that_is_not_validated(bench: Bench) -> None:
    assert bench.pvalidate(SMALL) == OK
    assert bench.call(0, REMAP_CA, SMALL).rax == ResultCode.INVALID_ADDRESS
    assert bench.host.rmpupdate(SMALL, assigned=False) == RmpResult.SUCCESS
    assert bench.call(0, REMAP_CA, SMALL).rax == ResultCode.INVALID_ADDRESS
    assert bench.caa() == KERNEL_CAA


def test_a_calling_area_of_another_vcpu_is_taken() -> None:
    bench = Bench(vcpus=2).boot()
    bench.kernel.write(SMALL, bytes(bench.memory.buf[KERNEL_VMSA : KERNEL_VMSA + PAGE]))
    assert bench.create_vcpu(SMALL, SMALL + PAGE, 1) == ResultCode.SUCCESS
    assert bench.call(0, REMAP_CA, SMALL + PAGE).rax == ResultCode.INVALID_ADDRESS
    assert bench.call(0, REMAP_CA, KERNEL_CAA, vcpu=1).rax == ResultCode.INVALID_ADDRESS


# PVALIDATE


def test_invalidate_and_validate(bench: Bench) -> None:
    kernel = bench.kernel
    kernel.write(SMALL, b"secret")
    assert bench.pvalidate(SMALL) == OK
    with pytest.raises(RmpViolation, match="not validated"):
        kernel.read(SMALL, 1)
    # Nothing of the guest's permissions is left for whoever validates the page next.
    assert bench.view(0).pvalidate(SMALL).code == RmpResult.SUCCESS
    assert not kernel.allows(SMALL, 1)
    assert bench.view(0).pvalidate(SMALL, validate=False).code == RmpResult.SUCCESS
    assert bench.pvalidate(SMALL | VALIDATE) == OK
    assert kernel.allows(SMALL, 15, PAGE)
    assert kernel.read(SMALL, 6) == bytes(6)
    bench.check()


def test_share_and_take_back(bench: Bench) -> None:
    assert bench.pvalidate(SMALL) == OK
    assert bench.host.rmpupdate(SMALL, assigned=False) == RmpResult.SUCCESS
    assert bench.kernel.allows(SMALL, 3, private=False)
    bench.host.write(SMALL, b"from the host")
    assert bench.host.rmpupdate(SMALL, assigned=True) == RmpResult.SUCCESS
    assert bench.pvalidate(SMALL | VALIDATE) == OK
    assert bench.kernel.read(SMALL, 13) == bytes(13)


def test_two_megabytes(bench: Bench) -> None:
    bench.kernel.write(FREE + 5 * PAGE, b"secret")
    assert bench.pvalidate(FREE | SIZE_2M) == OK
    assert not bench.kernel.allows(FREE + 5 * PAGE, 1)
    assert bench.pvalidate(FREE | SIZE_2M | VALIDATE) == OK
    assert bench.kernel.read(FREE, LARGE) == bytes(LARGE)
    assert bench.kernel.allows(FREE, 15, LARGE)
    assert bench.splits == 0


def test_small_page_of_a_large_entry_is_split(bench: Bench) -> None:
    first, second = FREE + PAGE, FREE_2M + 3 * PAGE
    assert bench.pvalidate(first, second, second | VALIDATE) == (ResultCode.SUCCESS, 3)
    assert bench.splits == 2
    assert not bench.kernel.allows(first, 1)
    assert bench.kernel.allows(second, 15, PAGE)
    assert bench.view(0).rmpquery(FREE, vmpl=3).size == PageSize.SIZE_4K
    assert bench.kernel.read_u8(bench.caa()) == 0


def test_size_mismatch(bench: Bench) -> None:
    assert bench.host.psmash(FREE) == RmpResult.SUCCESS
    assert bench.pvalidate(FREE | SIZE_2M)[0] == 0x80001006
    assert bench.pvalidate(FREE | SIZE_2M | VALIDATE)[0] == ResultCode.FAIL_SIZE_MISMATCH
    assert bench.kernel.allows(FREE, 15, LARGE)


def test_unchanged(bench: Bench) -> None:
    assert bench.pvalidate(SMALL | VALIDATE) == (ResultCode.FAIL_UNCHANGED, 0)
    assert bench.pvalidate(SMALL) == OK
    assert bench.pvalidate(SMALL) == (ResultCode.FAIL_UNCHANGED, 0)
    assert bench.pvalidate(SMALL | IGNORE_CF) == OK
    assert bench.pvalidate(SMALL | VALIDATE | IGNORE_CF) == OK
    bench.kernel.write(SMALL, b"secret")
    assert bench.pvalidate(SMALL | VALIDATE | IGNORE_CF) == OK
    assert bench.kernel.read(SMALL, 6) == bytes(6)


@pytest.mark.parametrize("action", [0, VALIDATE, IGNORE_CF, VALIDATE | IGNORE_CF])
def test_page_of_the_hosts(bench: Bench, action: int) -> None:
    assert bench.pvalidate(SMALL) == OK
    assert bench.host.rmpupdate(SMALL, assigned=False) == RmpResult.SUCCESS
    assert bench.pvalidate(SMALL | action)[0] == ResultCode.INVALID_ADDRESS


@pytest.mark.parametrize("action", [0, VALIDATE, VALIDATE | IGNORE_CF])
@pytest.mark.parametrize(
    "page",
    [
        MONITOR,
        MONITOR | SIZE_2M,
        SECRETS,
        GHCB,
        SERVICES,
        RAM - PAGE,
        KERNEL_VMSA,
        KERNEL_CAA,
        0 | SIZE_2M,  # has a calling area in it
        RAM,
        RAM | SIZE_2M,
        SMALL | 1 << 51,
        (1 << 64) - PAGE,
        (1 << 64) - LARGE | SIZE_2M,
    ],
)
def test_pages_that_are_not_the_guests_to_change(bench: Bench, page: int, action: int) -> None:
    before = bench.rmp.dump()
    assert bench.pvalidate(page | action) == (ResultCode.INVALID_ADDRESS, 0)
    assert bench.rmp.dump() == before
    bench.check()


@pytest.mark.parametrize("bits", [1 << 4, 1 << 11, 2, 3, SIZE_2M])
def test_malformed_entries(bench: Bench, bits: int) -> None:
    assert bench.pvalidate(SMALL | bits) == (ResultCode.INVALID_PARAMETER, 0)
    assert bench.kernel.allows(SMALL, 15)


def test_next_counts_what_is_done(bench: Bench) -> None:
    pages = [SMALL + number * PAGE for number in range(4)]
    assert bench.pvalidate(*pages[:2], MONITOR, pages[3]) == (ResultCode.INVALID_ADDRESS, 2)
    assert [bench.kernel.allows(page, 1) for page in pages] == [False, False, True, True]
    assert bench.pvalidate(*pages[:2], *pages[2:], first=2) == (ResultCode.SUCCESS, 4)
    assert not any(bench.kernel.allows(page, 1) for page in pages)


@pytest.mark.parametrize(
    ("entries", "first", "reserved"),
    [(0, 0, 0), (1, 1, 0), (1, 2, 0), (1, 0xFFFF, 0), (511, 0, 0), (0xFFFF, 0, 0), (0xFFFF, 0xFFFE, 0), (1, 0, 1)],
)
def test_malformed_headers(bench: Bench, entries: int, first: int, reserved: int) -> None:
    at = KERNEL_CAA + 8
    bench.kernel.write(at, struct.pack("<HHIQ", entries, first, reserved, SMALL))
    assert bench.call(0, PVALIDATE, at).rax == ResultCode.INVALID_PARAMETER
    assert bench.kernel.allows(SMALL, 15)
    assert bench.kernel.read_u16(at + 2) == first


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (KERNEL_CAA + 4, ResultCode.INVALID_PARAMETER),
        (KERNEL_CAA + PAGE - 8, ResultCode.INVALID_PARAMETER),
        (MONITOR, ResultCode.INVALID_ADDRESS),
        (SERVICES, ResultCode.INVALID_ADDRESS),
        (KERNEL_VMSA, ResultCode.INVALID_ADDRESS),
        (RAM, ResultCode.INVALID_ADDRESS),
        ((1 << 64) - PAGE, ResultCode.INVALID_ADDRESS),
        (KERNEL_CAA | 1 << 51, ResultCode.INVALID_ADDRESS),
    ],
)
def test_bad_list_addresses(bench: Bench, at: int, code: ResultCode) -> None:
    bench.memory.buf[MONITOR + 0x20000 : MONITOR + 0x20010] = struct.pack("<HHIQ", 1, 0, 0, SMALL)
    assert bench.call(0, PVALIDATE, at).rax == code


def test_list_on_the_guests_own_page(bench: Bench) -> None:
    """The last list that fits, on an ordinary page, and one on a page that is not validated."""
    at = SMALL + PAGE - 16
    bench.kernel.write(at, struct.pack("<HHIQ", 1, 0, 0, SMALL + PAGE))
    assert bench.call(0, PVALIDATE, at).rax == ResultCode.SUCCESS
    assert bench.call(0, PVALIDATE, SMALL + PAGE).rax == ResultCode.INVALID_ADDRESS


def test_list_that_removes_itself(bench: Bench) -> None:
    bench.kernel.write(SMALL, struct.pack("<HHIQ", 1, 0, 0, SMALL))
    assert bench.call(0, PVALIDATE, SMALL).rax == ResultCode.INVALID_ADDRESS
    bench.check()


def test_full_list(bench: Bench) -> None:
    entries = [(FREE + number * PAGE) for number in range(510)]
    assert bench.pvalidate(*entries) == (ResultCode.SUCCESS, 510)
    assert not any(bench.kernel.allows(page, 1) for page in entries)
