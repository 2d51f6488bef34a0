# SPDX-License-Identifier: GPL-2.0-or-later
"""The RMP instructions one by one: APM volume 3, and volume 2, 15.36."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.errors import RmpViolation, SnpError
from veil.snp.rmp import (
    FAULT_ENC,
    FAULT_GP,
    FAULT_NOT_VALIDATED,
    FAULT_RMP,
    FAULT_SIZEM,
    FAULT_VMPL,
    EntryFlag,
    PageSize,
    Permission,
    Rmp,
    RmpResult,
)

R, W, UX, SX = Permission.R, Permission.W, Permission.UX, Permission.SX
LARGE = PageSize.SIZE_2M
PAGE = 5 * PAGE_SIZE
REGION = 512 * PAGE_SIZE


@pytest.fixture
def rmp() -> Rmp:
    """A table of two 2 MiB regions and a bit."""
    return Rmp(2 * 512 + 8)


def give(rmp: Rmp, gpa: int, size: PageSize = PageSize.SIZE_4K) -> None:
    """Assign and validate."""
    assert rmp.rmpupdate(gpa, assigned=True, size=size) == (RmpResult.SUCCESS, 1)
    assert rmp.pvalidate(gpa, vmpl=0, size=size) == (RmpResult.SUCCESS, False)


def fault(rmp: Rmp, gpa: int, vmpl: int, permissions: int, *, private: bool = True) -> int:
    """What one access gets."""
    return rmp.check_range(gpa, 1, vmpl=vmpl, permissions=permissions, private=private)[0]


class TestChecks:
    """APM volume 2, 15.36.10: the checks on guest accesses, and what a refusal reports."""

    def test_host_page(self, rmp: Rmp) -> None:
        assert fault(rmp, PAGE, 0, R) == FAULT_RMP | FAULT_ENC
        assert fault(rmp, PAGE, 3, R | W, private=False) == 0

    def test_assigned_page(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True)
        assert fault(rmp, PAGE, 0, R) == FAULT_NOT_VALIDATED
        assert fault(rmp, PAGE, 0, R, private=False) == FAULT_RMP

    @pytest.mark.parametrize("size", PageSize)
    def test_validated_page_is_open_to_vmpl0_only(self, rmp: Rmp, size: PageSize) -> None:
        give(rmp, 0, size)
        assert fault(rmp, 0, 0, R | W | UX | SX) == 0
        for vmpl, permission in itertools.product((1, 2, 3), (R, W, UX, SX)):
            assert fault(rmp, 0, vmpl, permission) == FAULT_RMP | FAULT_ENC | FAULT_VMPL
        assert fault(rmp, 0, 0, R, private=False) == FAULT_RMP

    def test_each_permission_stands_alone(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        for granted in range(16):
            rmp.rmpadjust(PAGE, vmpl=0, target=2, permissions=granted)
            for wanted in range(1, 16):
                assert (fault(rmp, PAGE, 2, wanted) == 0) == (wanted & granted == wanted)
                assert fault(rmp, PAGE, 3, wanted)

    def test_large_entry_governs_its_512_pages(self, rmp: Rmp) -> None:
        give(rmp, REGION, LARGE)
        for page in (512, 513, 1023):
            assert fault(rmp, page * PAGE_SIZE, 0, R) == 0
        assert fault(rmp, 511 * PAGE_SIZE, 0, R) == FAULT_RMP | FAULT_ENC
        assert fault(rmp, 1024 * PAGE_SIZE, 0, R) == FAULT_RMP | FAULT_ENC

    def test_range_reports_the_first_page_that_fails(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        give(rmp, PAGE + PAGE_SIZE)
        at = PAGE + 4000
        assert rmp.check_range(at, 8, vmpl=0, permissions=R) == (0, at)
        assert rmp.check_range(at, PAGE_SIZE + 97, vmpl=0, permissions=R) == (
            FAULT_RMP | FAULT_ENC,
            PAGE + 2 * PAGE_SIZE,
        )
        assert rmp.check_range(at - PAGE_SIZE, 8, vmpl=0, permissions=R)[1] == at - PAGE_SIZE

    @pytest.mark.parametrize("gpa", [-1, -PAGE_SIZE, (2 * 512 + 8) * PAGE_SIZE, 1 << 51, 1 << 64, 1 << 70])
    def test_addresses_outside(self, rmp: Rmp, gpa: int) -> None:
        assert fault(rmp, gpa, 0, R) == FAULT_RMP | FAULT_ENC
        with pytest.raises(RmpViolation, match="outside guest memory"):
            rmp.pvalidate(gpa, vmpl=0)
        with pytest.raises(RmpViolation):
            rmp.rmpadjust(gpa, vmpl=0, target=1, permissions=0)
        with pytest.raises(RmpViolation):
            rmp.rmpquery(gpa, vmpl=0, target=1)
        assert rmp.rmpupdate(gpa, assigned=True)[0] is RmpResult.FAIL_INPUT
        assert rmp.psmash(gpa) is RmpResult.FAIL_INPUT
        assert rmp.launch_page(gpa) is RmpResult.FAIL_INPUT
        assert not rmp.is_vmsa(gpa)


class TestPvalidate:
    """APM volume 3, PVALIDATE."""

    def test_carry_tells_that_nothing_changed(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True)
        assert rmp.pvalidate(PAGE, vmpl=0) == (RmpResult.SUCCESS, False)
        assert rmp.pvalidate(PAGE, vmpl=0) == (RmpResult.SUCCESS, True)
        assert rmp.pvalidate(PAGE, vmpl=0, validate=False) == (RmpResult.SUCCESS, False)
        assert rmp.pvalidate(PAGE, vmpl=0, validate=False) == (RmpResult.SUCCESS, True)

    def test_needs_cpl0_and_vmpl0(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True)
        with pytest.raises(RmpViolation) as caught:
            rmp.pvalidate(PAGE, vmpl=0, cpl=3)
        assert caught.value.fault == FAULT_GP
        for vmpl in (1, 2, 3):
            assert rmp.pvalidate(PAGE, vmpl=vmpl) == (RmpResult.FAIL_PERMISSION, False)
        assert fault(rmp, PAGE, 0, R) == FAULT_NOT_VALIDATED

    def test_needs_a_private_page(self, rmp: Rmp) -> None:
        with pytest.raises(RmpViolation) as caught:
            rmp.pvalidate(PAGE, vmpl=0)
        assert caught.value.fault == FAULT_RMP | FAULT_ENC
        rmp.rmpupdate(PAGE, assigned=True)
        with pytest.raises(RmpViolation) as caught:
            rmp.pvalidate(PAGE, vmpl=0, private=False)
        assert caught.value.fault == FAULT_RMP

    def test_sizes(self, rmp: Rmp) -> None:
        """4 KiB in a 2 MiB entry exits so that the host can PSMASH; the other way round software must split."""
        rmp.rmpupdate(0, assigned=True, size=LARGE)
        for gpa in (0, PAGE):
            with pytest.raises(RmpViolation) as caught:
                rmp.pvalidate(gpa, vmpl=0)
            assert caught.value.fault == FAULT_RMP | FAULT_ENC | FAULT_SIZEM
        assert rmp.pvalidate(PAGE, vmpl=0, size=LARGE).code is RmpResult.FAIL_INPUT
        assert rmp.psmash(0) is RmpResult.SUCCESS
        assert rmp.pvalidate(PAGE, vmpl=0).code is RmpResult.SUCCESS
        assert rmp.pvalidate(0, vmpl=0, size=LARGE).code is RmpResult.FAIL_SIZEMISMATCH

    def test_permissions_survive_until_rmpupdate(self, rmp: Rmp) -> None:
        """So a monitor that only invalidates leaves the guest's permissions in place for the next validation."""
        give(rmp, PAGE)
        rmp.rmpadjust(PAGE, vmpl=0, target=3, permissions=R)
        rmp.pvalidate(PAGE, vmpl=0, validate=False)
        rmp.pvalidate(PAGE, vmpl=0)
        assert fault(rmp, PAGE, 3, R) == 0
        rmp.rmpupdate(PAGE, assigned=True)
        rmp.pvalidate(PAGE, vmpl=0)
        assert fault(rmp, PAGE, 3, R) == FAULT_RMP | FAULT_ENC | FAULT_VMPL


class TestRmpadjust:
    """APM volume 3, RMPADJUST."""

    def test_only_less_privileged_levels(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        for own, target in itertools.product(range(4), range(4)):
            result = rmp.rmpadjust(PAGE, vmpl=own, target=target, permissions=0)
            assert result is (RmpResult.SUCCESS if target > own else RmpResult.FAIL_PERMISSION)

    def test_at_most_own_permissions(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        for own, granted in itertools.product(range(16), range(16)):
            rmp.rmpadjust(PAGE, vmpl=0, target=1, permissions=own)
            rmp.rmpadjust(PAGE, vmpl=0, target=2, permissions=0)
            result = rmp.rmpadjust(PAGE, vmpl=1, target=2, permissions=granted)
            assert result is (RmpResult.FAIL_PERMISSION if granted & ~own else RmpResult.SUCCESS)
            assert (rmp.entry(PAGE)["perms"][2] == granted) == (result is RmpResult.SUCCESS)

    def test_vmsa_by_vmpl0_only(self, rmp: Rmp) -> None:
        """Other levels' bit is ignored: the instruction may succeed, but it makes no VMSA."""
        give(rmp, PAGE)
        rmp.rmpadjust(PAGE, vmpl=0, target=1, permissions=15)
        assert rmp.rmpadjust(PAGE, vmpl=1, target=2, permissions=0, vmsa=True) is RmpResult.SUCCESS
        assert not rmp.is_vmsa(PAGE)
        assert rmp.rmpadjust(PAGE, vmpl=0, target=1, permissions=0, vmsa=True) is RmpResult.SUCCESS
        assert rmp.is_vmsa(PAGE)
        # Nor can they end one.
        assert rmp.rmpadjust(PAGE, vmpl=1, target=2, permissions=0) is RmpResult.SUCCESS
        assert rmp.is_vmsa(PAGE)
        assert rmp.rmpadjust(PAGE, vmpl=0, target=3, permissions=0) is RmpResult.SUCCESS
        assert not rmp.is_vmsa(PAGE)

    def test_bad_input(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        give(rmp, REGION, LARGE)
        adjust = rmp.rmpadjust
        assert adjust(PAGE, vmpl=0, target=4, permissions=0) is RmpResult.FAIL_INPUT
        assert adjust(PAGE, vmpl=3, target=255, permissions=0) is RmpResult.FAIL_INPUT
        assert adjust(PAGE, vmpl=0, target=256, permissions=0) is RmpResult.FAIL_INPUT
        assert adjust(PAGE, vmpl=0, target=1, permissions=16) is RmpResult.FAIL_INPUT
        assert adjust(PAGE, vmpl=0, target=1, permissions=256) is RmpResult.FAIL_INPUT
        assert adjust(PAGE, vmpl=0, target=1, permissions=-1) is RmpResult.FAIL_INPUT
        assert adjust(PAGE, vmpl=0, target=1, permissions=0, size=LARGE) is RmpResult.FAIL_INPUT
        assert adjust(REGION, vmpl=0, target=1, permissions=0, size=LARGE, vmsa=True) is RmpResult.FAIL_INPUT

    def test_page_state_and_sizes(self, rmp: Rmp) -> None:
        with pytest.raises(RmpViolation) as caught:
            rmp.rmpadjust(PAGE, vmpl=0, target=1, permissions=0)
        assert caught.value.fault == FAULT_RMP | FAULT_ENC
        rmp.rmpupdate(PAGE, assigned=True)
        with pytest.raises(RmpViolation) as caught:
            rmp.rmpadjust(PAGE, vmpl=0, target=1, permissions=0)
        assert caught.value.fault == FAULT_NOT_VALIDATED
        give(rmp, 0)
        assert rmp.rmpadjust(0, vmpl=0, target=1, permissions=0, size=LARGE) is RmpResult.FAIL_SIZEMISMATCH
        give(rmp, REGION, LARGE)
        with pytest.raises(RmpViolation) as caught:
            rmp.rmpadjust(REGION + PAGE, vmpl=0, target=1, permissions=0)
        assert caught.value.fault == FAULT_RMP | FAULT_ENC | FAULT_SIZEM
        with pytest.raises(RmpViolation) as caught:
            rmp.rmpadjust(PAGE, vmpl=0, target=1, permissions=0, cpl=1)
        assert caught.value.fault == FAULT_GP

    def test_large_page(self, rmp: Rmp) -> None:
        give(rmp, REGION, LARGE)
        assert rmp.rmpadjust(REGION, vmpl=0, target=3, permissions=R, size=LARGE) is RmpResult.SUCCESS
        assert fault(rmp, REGION + PAGE, 3, R) == 0
        assert fault(rmp, REGION + PAGE, 3, W) == FAULT_RMP | FAULT_ENC | FAULT_VMPL


class TestRmpquery:
    """APM volume 3, RMPQUERY."""

    def test_tells_the_entry(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        rmp.rmpadjust(PAGE, vmpl=0, target=2, permissions=R | SX, vmsa=True)
        assert rmp.rmpquery(PAGE, vmpl=1, target=2) == (RmpResult.SUCCESS, R | SX, True, PageSize.SIZE_4K)
        give(rmp, REGION, LARGE)
        assert rmp.rmpquery(REGION + PAGE, vmpl=0, target=0) == (RmpResult.SUCCESS, Permission.ALL, False, LARGE)

    def test_not_of_more_privileged_levels(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        for own, target in itertools.product(range(4), range(4)):
            expected = RmpResult.SUCCESS if target >= own else RmpResult.FAIL_PERMISSION
            assert rmp.rmpquery(PAGE, vmpl=own, target=target).code is expected
        assert rmp.rmpquery(PAGE, vmpl=0, target=4).code is RmpResult.FAIL_INPUT
        assert rmp.rmpquery(PAGE, vmpl=0, target=999).code is RmpResult.FAIL_INPUT

    def test_page_state(self, rmp: Rmp) -> None:
        for prepare, expected in (
            (lambda: None, FAULT_RMP | FAULT_ENC),
            (lambda: rmp.rmpupdate(PAGE, assigned=True), FAULT_NOT_VALIDATED),
        ):
            prepare()
            with pytest.raises(RmpViolation) as caught:
                rmp.rmpquery(PAGE, vmpl=0, target=0)
            assert caught.value.fault == expected


class TestHostInstructions:
    """APM volume 3, RMPUPDATE and PSMASH."""

    def test_overlap(self, rmp: Rmp) -> None:
        rmp.rmpupdate(0, assigned=True, size=LARGE)
        for gpa, assigned in itertools.product((0, PAGE), (False, True)):
            assert rmp.rmpupdate(gpa, assigned=assigned)[0] is RmpResult.FAIL_OVERLAP
        rmp.rmpupdate(REGION + PAGE, assigned=True)
        for assigned in (False, True):
            assert rmp.rmpupdate(REGION, assigned=assigned, size=LARGE)[0] is RmpResult.FAIL_OVERLAP

    def test_bad_input(self, rmp: Rmp) -> None:
        assert rmp.rmpupdate(1, assigned=True)[0] is RmpResult.FAIL_INPUT
        assert rmp.rmpupdate(PAGE, assigned=True, size=LARGE)[0] is RmpResult.FAIL_INPUT
        assert rmp.rmpupdate(2 * REGION, assigned=True, size=LARGE)[0] is RmpResult.FAIL_INPUT
        assert rmp.rmpupdate(PAGE, assigned=False, immutable=True)[0] is RmpResult.FAIL_INPUT
        assert rmp.rmpupdate(PAGE, assigned=True, count=-1)[0] is RmpResult.FAIL_INPUT
        assert rmp.psmash(PAGE) is RmpResult.FAIL_INPUT
        assert rmp.psmash(0) is RmpResult.FAIL_INPUT

    def test_immutable_until_launched(self, rmp: Rmp) -> None:
        rmp.rmpupdate(0, assigned=True, size=LARGE, immutable=True)
        assert rmp.rmpupdate(0, assigned=False, size=LARGE)[0] is RmpResult.FAIL_PERMISSION
        assert rmp.psmash(0) is RmpResult.FAIL_PERMISSION
        with pytest.raises(RmpViolation):
            rmp.pvalidate(0, vmpl=0, size=LARGE)
        assert rmp.launch_page(0, size=LARGE) is RmpResult.SUCCESS
        assert rmp.psmash(0) is RmpResult.SUCCESS

    def test_range_stops_at_the_first_failure(self, rmp: Rmp) -> None:
        rmp.rmpupdate(3 * PAGE_SIZE, assigned=True, immutable=True)
        assert rmp.rmpupdate(0, assigned=True, count=8) == (RmpResult.FAIL_PERMISSION, 3)
        assert rmp.assigned(0, 8).tolist() == [True] * 4 + [False] * 4
        assert rmp.rmpupdate(REGION, assigned=True, size=LARGE, count=2) == (RmpResult.FAIL_INPUT, 1)

    def test_psmash_keeps_everything_but_the_size(self, rmp: Rmp) -> None:
        give(rmp, REGION, LARGE)
        rmp.rmpadjust(REGION, vmpl=0, target=3, permissions=R | UX, size=LARGE)
        generation = rmp.generation
        assert rmp.psmash(REGION) is RmpResult.SUCCESS
        assert rmp.generation == generation
        assert set(rmp.entries["flags"][512:1024]) == {EntryFlag.ASSIGNED | EntryFlag.VALIDATED}
        assert (rmp.entries["perms"][512:1024] == [15, 0, 0, R | UX]).all()
        assert rmp.rmpadjust(REGION + PAGE, vmpl=0, target=3, permissions=0) is RmpResult.SUCCESS
        assert fault(rmp, REGION, 3, R) == 0

    def test_unassigning_a_large_page_leaves_nothing(self, rmp: Rmp) -> None:
        give(rmp, REGION, LARGE)
        assert rmp.rmpupdate(REGION, assigned=False, size=LARGE)[0] is RmpResult.SUCCESS
        assert not any(rmp.words)

    def test_hole_is_nobodys(self) -> None:
        rmp = Rmp(1536, holes=[range(512, 1024)])
        assert rmp.rmpupdate(REGION, assigned=True)[0] is RmpResult.FAIL_INPUT
        assert rmp.rmpupdate(REGION, assigned=True, size=LARGE)[0] is RmpResult.FAIL_INPUT
        assert fault(rmp, REGION, 0, R) == FAULT_RMP | FAULT_ENC
        assert fault(rmp, REGION, 0, R, private=False) == FAULT_RMP
        assert rmp.rmpupdate(2 * REGION, assigned=True, size=LARGE)[0] is RmpResult.SUCCESS

    def test_a_large_hole_takes_little_memory(self) -> None:
        """64 GiB, whose entries are 128 MiB: the same memory at many addresses."""
        start, end = 512 + 3, (64 << 30) // PAGE_SIZE
        before = _resident()
        rmp = Rmp(end + 512, holes=[range(1, 5), range(start, end)])
        assert (rmp.entries["flags"][start:end] == EntryFlag.NO_RAM).all()
        assert not rmp.entries["perms"][start:end].any()
        assert np.flatnonzero(rmp.entries["flags"][:start]).tolist() == [1, 2, 3, 4]
        assert not rmp.entries["flags"][end:].any()
        assert _resident() - before < 32 << 20
        for page in (start, end // 2, end - 1):
            assert rmp.rmpupdate(page * PAGE_SIZE, assigned=True)[0] is RmpResult.FAIL_INPUT
        assert rmp.rmpupdate(end * PAGE_SIZE, assigned=True, size=LARGE)[0] is RmpResult.SUCCESS


def _resident() -> int:
    """Bytes of memory that this process has for itself (proc(5), smaps_rollup)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class TestRunningVmsa:
    """APM volume 2, 15.36.12: while a VMSA runs, its page is in use."""

    @pytest.fixture
    def running(self, rmp: Rmp) -> Rmp:
        give(rmp, PAGE)
        rmp.rmpadjust(PAGE, vmpl=0, target=1, permissions=15, vmsa=True)
        rmp.vmsa_in_use = PAGE
        return rmp

    def test_cannot_be_touched(self, running: Rmp) -> None:
        table = running.dump()
        assert running.pvalidate(PAGE, vmpl=0, validate=False).code is RmpResult.FAIL_INUSE
        assert running.rmpadjust(PAGE, vmpl=0, target=1, permissions=0) is RmpResult.FAIL_INUSE
        assert running.rmpupdate(PAGE, assigned=False)[0] is RmpResult.FAIL_INUSE
        assert running.rmpupdate(0, assigned=False, size=LARGE)[0] is RmpResult.FAIL_INUSE
        assert running.dump() == table
        assert fault(running, PAGE, 0, W) == FAULT_RMP | FAULT_ENC
        assert fault(running, PAGE, 1, W) == FAULT_RMP | FAULT_ENC
        assert fault(running, PAGE, 1, R) == 0
        assert fault(running, PAGE + PAGE_SIZE, 0, W) == FAULT_RMP | FAULT_ENC

    def test_is_free_again_when_idle(self, running: Rmp) -> None:
        running.vmsa_in_use = None
        assert running.vmsa_in_use is None
        assert fault(running, PAGE, 1, W) == 0
        assert running.rmpadjust(PAGE, vmpl=0, target=1, permissions=0) is RmpResult.SUCCESS

    def test_what_vmrun_accepts(self, rmp: Rmp) -> None:
        assert not rmp.is_vmsa(PAGE)
        rmp.rmpupdate(PAGE, assigned=True, immutable=True)
        assert rmp.launch_page(PAGE, vmsa=True) is RmpResult.SUCCESS
        assert rmp.is_vmsa(PAGE)
        assert not rmp.is_vmsa(PAGE + 8)
        rmp.pvalidate(PAGE, vmpl=0, validate=False)
        assert not rmp.is_vmsa(PAGE)


class TestLaunch:
    """SNP_LAUNCH_UPDATE (56860) as far as the RMP is concerned."""

    def test_page(self, rmp: Rmp) -> None:
        assert rmp.launch_page(PAGE) is RmpResult.FAIL_PERMISSION
        rmp.rmpupdate(PAGE, assigned=True, immutable=True)
        assert rmp.launch_page(PAGE, permissions=(R, R | W, 16)) is RmpResult.FAIL_INPUT
        assert rmp.launch_page(PAGE, permissions=(R, R | W, SX)) is RmpResult.SUCCESS
        assert rmp.entry(PAGE)["perms"].tolist() == [15, R, R | W, SX]
        assert rmp.entry(PAGE)["flags"] == EntryFlag.ASSIGNED | EntryFlag.VALIDATED
        assert rmp.launch_page(PAGE) is RmpResult.FAIL_PERMISSION

    def test_sizes(self, rmp: Rmp) -> None:
        rmp.rmpupdate(0, assigned=True, size=LARGE)
        assert rmp.launch_page(0) is RmpResult.FAIL_SIZEMISMATCH
        assert rmp.launch_page(0, size=LARGE, vmsa=True) is RmpResult.FAIL_INPUT
        assert rmp.launch_page(0, size=LARGE) is RmpResult.SUCCESS
        assert fault(rmp, PAGE, 0, R) == 0


class TestTable:
    """The numpy face."""

    def test_effective(self, rmp: Rmp) -> None:
        give(rmp, REGION, LARGE)
        give(rmp, PAGE)
        assert np.flatnonzero(rmp.effective()["flags"]).tolist() == [5, *range(512, 1024)]
        assert np.flatnonzero(rmp.assigned(0, rmp.pages)).tolist() == [5, *range(512, 1024)]
        assert rmp.assigned(510, 4).tolist() == [False, False, True, True]
        assert rmp.assigned(1022, 4).tolist() == [True, True, False, False]
        assert rmp.is_assigned(REGION + PAGE)

    def test_dump_and_load(self, rmp: Rmp) -> None:
        give(rmp, PAGE)
        other = Rmp(rmp.pages)
        generation = other.generation
        other.load(rmp.dump())
        assert fault(other, PAGE, 0, R) == 0
        assert other.generation > generation
        with pytest.raises(SnpError, match="bytes"):
            other.load(rmp.dump()[:-8])

    def test_bad_sizes(self) -> None:
        with pytest.raises(SnpError):
            Rmp(0)
        with pytest.raises(SnpError, match="outside"):
            Rmp(8).entry(8 * PAGE_SIZE)
