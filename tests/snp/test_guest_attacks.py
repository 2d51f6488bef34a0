# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks by real machine code, each with its counter-test: the same code gets through where the protection is off.

Bits of EXITINFO1 of a nested page fault: APM volume 2, 15.36.10.
"""

from __future__ import annotations

import pytest

from tests.small_guest import CODE, FREE, PAGE, SHARED, VMSA, SmallGuest
from veil.snp import EntryFlag, ExitCode, Permission, RmpResult
from veil.snp.layouts import Vmsa

_PRESENT, _WRITE, _USER, _FETCH = 1 << 0, 1 << 1, 1 << 2, 1 << 4
_RMP, _FINAL, _TABLE, _ENC, _SIZEM, _VMPL = (1 << bit for bit in (31, 32, 33, 34, 35, 36))
_BY_VMPL = _RMP | _ENC | _VMPL | _PRESENT | _USER

_VC = 29
_NOT_VALIDATED = 0x404

_READ = f"mov rax, [{FREE}]\nhlt"
_STORE = f"mov qword ptr [{FREE}], 7\nhlt"
_CALL = f"mov rax, {FREE}\ncall rax\nhlt"
_RMPADJUST = ".byte 0xf3, 0x0f, 0x01, 0xfe"
_PVALIDATE = ".byte 0xf2, 0x0f, 0x01, 0xff"
_RMPQUERY = ".byte 0xf3, 0x0f, 0x01, 0xfd"
_ATTACKS = [
    (_READ, Permission.R, 0),
    (_STORE, Permission.W, _WRITE),
    (_CALL, Permission.SX, _FETCH),
]


@pytest.mark.parametrize(("code", "needed", "bits"), _ATTACKS, ids=["read", "write", "execute"])
def test_a_page_of_vmpl_0_is_out_of_reach(code: str, needed: Permission, bits: int) -> None:
    with SmallGuest(code) as guest:
        guest.top.write(FREE, b"\xc3")
        guest.permit(FREE, Permission.ALL & ~needed)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _BY_VMPL | _FINAL | bits
        assert guest.vmcb.exit_info_2 == FREE
        # The instruction did not happen, and happens once the permission is there: state was precise.
        assert guest.top.read(FREE, 1) == b"\xc3"
        guest.permit(FREE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
    with SmallGuest(code) as guest:
        guest.top.write(FREE, b"\xc3")
        assert guest.run() == ExitCode.HLT


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_permissions_are_each_levels_own(vmpl: int) -> None:
    with SmallGuest(_READ, vmpl=vmpl) as guest:
        for other in {1, 2, 3} - {vmpl}:
            guest.permit(FREE, Permission.NONE, other)
        assert guest.run() == ExitCode.HLT
    with SmallGuest(_READ, vmpl=vmpl) as guest:
        guest.permit(FREE, Permission.NONE)
        assert guest.run() == ExitCode.NPF


def test_user_and_supervisor_execution_are_apart() -> None:
    for cpl, allowed, refused in ((0, Permission.SX, Permission.UX), (3, Permission.UX, Permission.SX)):
        with SmallGuest(f"mov rax, {FREE}\njmp rax", cpl=cpl) as guest:
            guest.put("int 0x20", FREE)
            guest.permit(FREE, Permission.R | refused)
            assert guest.run() == ExitCode.NPF
            assert guest.vmcb.exit_info_1 == _BY_VMPL | _FINAL | _FETCH
            guest.permit(FREE, Permission.R | allowed)
            assert guest.run() == ExitCode.HLT
            assert guest.trap().vector == 0x20


def test_an_unvalidated_page_is_vc_404() -> None:
    with SmallGuest(_READ) as guest:
        guest.invalidate(FREE)
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_VC, _NOT_VALIDATED, CODE, 1)


def test_a_shared_page_read_as_private_and_the_other_way_round() -> None:
    with SmallGuest(_READ) as guest:
        guest.invalidate(FREE)
        guest.share(FREE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _RMP | _ENC | _FINAL | _PRESENT | _USER
    shared_read = f"mov rax, {SHARED + FREE}\nmov rax, [rax]\nhlt"
    with SmallGuest(shared_read) as guest:
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _RMP | _FINAL | _PRESENT | _USER
    with SmallGuest(shared_read) as guest:
        guest.invalidate(FREE)
        guest.share(FREE)
        guest.host.write_u64(FREE, 0x1234)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 0x1234


def test_fetching_from_shared_memory_is_a_private_access() -> None:
    with SmallGuest(f"mov rax, {SHARED + FREE}\ncall rax\nhlt") as guest:
        guest.invalidate(FREE)
        guest.share(FREE)
        guest.host.write(FREE, b"\xc3")
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_RMP | _ENC | _FETCH) == _RMP | _ENC | _FETCH


def test_the_running_vmsa_cannot_be_written() -> None:
    store = f"mov qword ptr [{VMSA}], 7\nhlt"
    with SmallGuest(store) as guest:
        # Even with every permission: the registers in use are the hardware's.
        assert guest.top.rmpadjust(VMSA, vmpl=3, permissions=Permission.ALL, vmsa=True) == RmpResult.SUCCESS
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _RMP | _ENC | _FINAL | _PRESENT | _USER | _WRITE
        assert guest.vmcb.exit_info_2 == VMSA
    # A VMSA that VMPL 0 sealed: not even readable.
    with SmallGuest(f"mov rax, [{VMSA}]\nhlt") as guest:
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _BY_VMPL | _FINAL
    with SmallGuest(f"mov qword ptr [{FREE}], 7\nhlt") as guest:
        assert guest.run() == ExitCode.HLT


_PT_OF_FREE = 0x4000


def test_the_page_walk_is_checked_too() -> None:
    # Reading a table, and writing accessed and dirty bits into one.
    with SmallGuest(_STORE) as guest:
        guest.permit(_PT_OF_FREE, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _BY_VMPL | _TABLE
        assert guest.vmcb.exit_info_2 & ~0xFFF == _PT_OF_FREE
    with SmallGuest(_STORE) as guest:
        # The code's own pages are walked first: mark what they need, then take the right to write away.
        for page in range(512):
            entry = guest.top.read_u64(_PT_OF_FREE + 8 * page)
            guest.top.write_u64(_PT_OF_FREE + 8 * page, entry | 0x20)
        guest.permit(_PT_OF_FREE, Permission.R)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _BY_VMPL | _TABLE | _WRITE
        assert guest.top.read_u64(FREE) == 0
        guest.permit(_PT_OF_FREE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.top.read_u64(FREE) == 7
        assert guest.top.read_u64(_PT_OF_FREE + 8 * (FREE // PAGE)) & 0x60 == 0x60


def _rmpadjust(gpa: int, target: int, permissions: int, *, vmsa: bool = False, size: int = 0) -> str:
    attributes = target | permissions << 8 | vmsa << 16
    return f"mov rax, {gpa}\nmov rcx, {size}\nmov rdx, {attributes}\n{_RMPADJUST}\nhlt"


@pytest.mark.parametrize(
    ("vmpl", "target", "permissions", "expected"),
    [
        (3, 3, Permission.ALL, 2),
        (3, 1, Permission.ALL, 2),
        (1, 1, Permission.ALL, 2),
        (2, 1, Permission.ALL, 2),
        (1, 3, Permission.ALL, 2),  # more than it has itself
        (1, 3, Permission.R, 0),
        (0, 3, Permission.ALL, 0),
        (0, 4, Permission.R, 1),
    ],
)
def test_rmpadjust_goes_downwards_with_what_one_has(vmpl: int, target: int, permissions: int, expected: int) -> None:
    with SmallGuest(_rmpadjust(FREE, target, permissions), vmpl=vmpl) as guest:
        if vmpl:
            guest.permit(FREE, Permission.R)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == expected
        if vmpl == 3:
            assert guest.machine.rmp.entry(FREE)["perms"][3] == Permission.R


def test_only_vmpl_0_makes_a_vmsa() -> None:
    attack = _rmpadjust(FREE, 3, Permission.NONE, vmsa=True)
    for vmpl in (0, 1, 3):
        with SmallGuest(attack, vmpl=vmpl) as guest:
            content = bytearray(guest.vmsa())
            content[Vmsa.rip.offset : Vmsa.rip.offset + 8] = CODE.to_bytes(8, "little")
            guest.top.write(FREE, bytes(content))
            guest.run()
            made = bool(guest.machine.rmp.entry(FREE)["flags"] & EntryFlag.VMSA)
            assert made == (vmpl == 0)
            forged = guest.machine.new_vmcb()
            forged.vmsa_pa = FREE
            assert (guest.run(forged) == ExitCode.INVALID) == (vmpl != 0)


@pytest.mark.parametrize(("vmpl", "code", "carry"), [(3, 2, False), (1, 2, False), (0, 0, False)])
def test_pvalidate_is_vmpl_0s(vmpl: int, code: int, carry: bool) -> None:
    text = f"mov rax, {FREE}\nxor ecx, ecx\nmov edx, 1\n{_PVALIDATE}\nhlt"
    with SmallGuest(text, vmpl=vmpl) as guest:
        guest.invalidate(FREE)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == code
        assert bool(guest.machine.rmp.entry(FREE)["flags"] & EntryFlag.VALIDATED) == (code == 0)
        assert bool(guest.vmsa().rflags & 1) == carry


def test_pvalidate_of_a_validated_page_sets_carry() -> None:
    with SmallGuest(f"mov rax, {FREE}\nxor ecx, ecx\nmov edx, 1\n{_PVALIDATE}\nhlt", vmpl=0) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 0
        assert guest.vmsa().rflags & 1


def test_2_mib_over_4_kib_entries_is_a_size_mismatch() -> None:
    with SmallGuest(f"mov rax, {2 << 20}\nmov ecx, 1\nmov edx, 1\n{_PVALIDATE}\nhlt", vmpl=0) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 6


def test_rmpquery_tells_a_lower_levels_rights() -> None:
    with SmallGuest(f"mov rax, {FREE}\nmov rdx, 3\n{_RMPQUERY}\nhlt", vmpl=1) as guest:
        guest.permit(FREE, Permission.R | Permission.UX, 3)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 0
        assert guest.vmsa().rdx >> 8 & 0xFF == Permission.R | Permission.UX


@pytest.mark.parametrize("instruction", [_PVALIDATE, _RMPADJUST, _RMPQUERY])
def test_user_code_gets_gp(instruction: str) -> None:
    with SmallGuest(f"mov rax, {FREE}\nxor ecx, ecx\nmov edx, 3\n{instruction}\nint 0x20", cpl=3) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 13
    # Also where the page is not mapped at all: what the kernel maps is not user code's to find out.
    with SmallGuest(f"mov rax, 0x7f0000000000\nxor ecx, ecx\nmov edx, 3\n{instruction}\nint 0x20", cpl=3) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 13


@pytest.mark.parametrize("instruction", [_PVALIDATE, _RMPADJUST, _RMPQUERY])
def test_the_walk_for_an_operand_is_checked_too(instruction: str) -> None:
    high = 0x200000
    with SmallGuest(f"mov rax, {high}\nxor ecx, ecx\nmov edx, 3\n{instruction}\nhlt", vmpl=1) as guest:
        guest.permit(0x5000, Permission.NONE)  # the table that maps it
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_info_1 == _BY_VMPL | _TABLE
        assert guest.vmcb.exit_info_2 == 0x5000
        guest.permit(0x5000, Permission.ALL)
        assert guest.run() == ExitCode.HLT
