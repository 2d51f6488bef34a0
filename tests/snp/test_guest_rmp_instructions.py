# SPDX-License-Identifier: GPL-2.0-or-later
"""Result codes of PVALIDATE, RMPADJUST and RMPQUERY through guest code, for both page sizes.

24594 (APM volume 3): each instruction's table of return codes, and the nested page fault with SIZEM where the RMP entry
is larger than the page asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.small_guest import CODE, FREE, PAGE, SHARED, VMSA, SmallGuest
from veil.snp import EntryFlag, ExitCode, PageSize, Permission, RmpResult

_LARGE = 2 << 20
_RMP, _FINAL, _TABLE, _ENC, _SIZEM, _VMPL = (1 << bit for bit in (31, 32, 33, 34, 35, 36))
_CODES = {
    "pvalidate": ".byte 0xf2, 0x0f, 0x01, 0xff",
    "rmpadjust": ".byte 0xf3, 0x0f, 0x01, 0xfe",
    "rmpquery": ".byte 0xf3, 0x0f, 0x01, 0xfd",
}
_CARRY, _PARITY, _ADJUST, _ZERO, _SIGN, _OVERFLOW = (1 << bit for bit in (0, 2, 4, 6, 7, 11))
_SIZE_2M = 1


class _Answer(NamedTuple):
    code: int
    carry: bool
    zero: bool
    rcx: int
    rdx: int


def _attributes(target: int, permissions: int = 0, *, vmsa: bool = False) -> int:
    return target | permissions << 8 | vmsa << 16


def _text(instruction: str, address: int, rcx: int, rdx: int) -> str:
    # Flags that the instruction must not leave as they are.
    return f"mov rax, {address}\nmov rcx, {rcx}\nmov rdx, {rdx}\ncmp rax, rax\nstc\n{_CODES[instruction]}\nhlt"


def _execute(guest: SmallGuest, instruction: str, address: int, rcx: int, rdx: int) -> ExitCode:
    guest.put(_text(instruction, address, rcx, rdx))
    guest.top.write_u64(VMSA + 0x178, CODE)
    return guest.run()


def _ask(guest: SmallGuest, instruction: str, address: int, rcx: int, rdx: int) -> _Answer:
    assert _execute(guest, instruction, address, rcx, rdx) == ExitCode.HLT
    assert guest.trap().times == 0, guest.trap()
    vmsa = guest.vmsa()
    return _Answer(vmsa.rax, bool(vmsa.rflags & _CARRY), bool(vmsa.rflags & _ZERO), vmsa.rcx, vmsa.rdx)


def _guest(vmpl: int = 0, *, validated: bool = True) -> SmallGuest:
    """The upper 2 MiB of memory are one entry of 2 MiB."""
    guest = SmallGuest(vmpl=vmpl)
    assert guest.host.rmpupdate(_LARGE, assigned=False, count=512) == RmpResult.SUCCESS
    assert guest.host.rmpupdate(_LARGE, assigned=True, size=PageSize.SIZE_2M) == RmpResult.SUCCESS
    if validated:
        assert guest.top.pvalidate(_LARGE, size=PageSize.SIZE_2M).code == RmpResult.SUCCESS
    return guest


@pytest.mark.parametrize("before", [0, _CARRY | _PARITY | _ADJUST | _ZERO | _SIGN | _OVERFLOW], ids=["clear", "set"])
@pytest.mark.parametrize(
    ("instruction", "address", "rcx", "rdx", "code"),
    [
        ("pvalidate", FREE, 0, 1, 0),  # as it was: CF
        ("pvalidate", FREE, 0, 0, 0),
        ("pvalidate", FREE, _SIZE_2M, 1, RmpResult.FAIL_INPUT),
        ("pvalidate", 0, _SIZE_2M, 1, RmpResult.FAIL_SIZEMISMATCH),
        ("rmpadjust", FREE, 0, 3, 0),
        ("rmpadjust", FREE, 0, 4, RmpResult.FAIL_INPUT),
        ("rmpadjust", FREE, 0, 0, RmpResult.FAIL_PERMISSION),
        ("rmpadjust", VMSA, 0, 3, RmpResult.FAIL_INUSE),
        ("rmpquery", FREE, 0, 3, 0),
        ("rmpquery", FREE, 0, 4, RmpResult.FAIL_INPUT),
    ],
)
def test_flags_are_those_of_the_return_code(
    instruction: str, address: int, rcx: int, rdx: int, code: int, before: int
) -> None:
    """OF, ZF, AF, PF and SF; CF is PVALIDATE's alone (APM volume 3)."""
    text = f"mov rax, {address}\nmov rcx, {rcx}\nmov rdx, {rdx}\npush {before | 2}\npopfq\n{_CODES[instruction]}\nhlt"
    with SmallGuest(text, vmpl=0) as guest:
        assert guest.run() == ExitCode.HLT
        vmsa = guest.vmsa()
        assert vmsa.rax == code
        even = not int(code).bit_count() % 2
        carry = before & _CARRY
        if instruction == "pvalidate":
            carry = _CARRY if code == 0 and rdx else 0
        assert vmsa.rflags == 2 | (0 if code else _ZERO) | (_PARITY if even else 0) | carry


def test_pvalidate_of_2_mib() -> None:
    with _guest(validated=False) as guest:
        done = _ask(guest, "pvalidate", _LARGE, _SIZE_2M, 1)
        assert (done.code, done.carry, done.zero) == (0, False, True)
        assert guest.top.read_u64(_LARGE + 0x12345 * 8) == 0
        again = _ask(guest, "pvalidate", _LARGE, _SIZE_2M, 1)
        assert (again.code, again.carry) == (0, True)
        back = _ask(guest, "pvalidate", _LARGE, _SIZE_2M, 0)
        assert (back.code, back.carry) == (0, False)
        assert not guest.machine.rmp.entry(_LARGE)["flags"] & EntryFlag.VALIDATED


def test_pvalidate_of_2_mib_within_2_mib_is_bad_input() -> None:
    with _guest() as guest:
        assert _ask(guest, "pvalidate", _LARGE + PAGE, _SIZE_2M, 1).code == RmpResult.FAIL_INPUT


def test_pvalidate_ignores_the_low_address_bits() -> None:
    with SmallGuest(vmpl=0) as guest:
        guest.invalidate(FREE)
        assert _ask(guest, "pvalidate", FREE + 0x777, 0, 1).code == 0
        assert guest.machine.rmp.entry(FREE)["flags"] & EntryFlag.VALIDATED


@pytest.mark.parametrize("instruction", ["pvalidate", "rmpadjust"])
def test_a_larger_entry_is_a_nested_page_fault_until_the_host_splits_it(instruction: str) -> None:
    rdx = 0 if instruction == "pvalidate" else _attributes(3, Permission.R)
    with _guest() as guest:
        target = _LARGE + 5 * PAGE
        assert _execute(guest, instruction, target, 0, rdx) == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_RMP | _ENC | _SIZEM | _FINAL) == _RMP | _ENC | _SIZEM | _FINAL
        assert guest.vmcb.exit_info_2 == target
        assert guest.vmsa().rax == target  # nothing happened
        assert guest.host.psmash(_LARGE) == RmpResult.SUCCESS
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 0
        entry = guest.machine.rmp.entry(target)
        if instruction == "pvalidate":
            assert not entry["flags"] & EntryFlag.VALIDATED
        else:
            assert entry["perms"][3] == Permission.R
        # Its neighbours stay.
        other = guest.machine.rmp.entry(target + PAGE)
        assert other["flags"] & EntryFlag.VALIDATED
        assert other["perms"][3] == 0


def test_rmpadjust_of_2_mib() -> None:
    with _guest() as guest:
        assert _ask(guest, "rmpadjust", _LARGE, _SIZE_2M, _attributes(2, Permission.ALL)).code == 0
        assert guest.machine.view(vmpl=2).read_u64(_LARGE + 0x1FF008) == 0
        assert _ask(guest, "rmpadjust", _LARGE + PAGE, _SIZE_2M, _attributes(2)).code == RmpResult.FAIL_INPUT
        assert _ask(guest, "rmpadjust", 0, _SIZE_2M, _attributes(2)).code == RmpResult.FAIL_SIZEMISMATCH
        # A VMSA is a page of 4 KiB.
        vmsa = _ask(guest, "rmpadjust", _LARGE, _SIZE_2M, _attributes(2, vmsa=True))
        assert vmsa.code == RmpResult.FAIL_INPUT


@pytest.mark.parametrize(
    ("vmpl", "target", "has", "asked", "code"),
    [
        (0, 1, 15, 15, 0),
        (0, 0, 15, 15, 2),
        (0, 4, 15, 0, 1),
        (0, 3, 15, 0x10, 1),  # supervisor shadow stacks: not of this processor
        (1, 2, Permission.R | Permission.UX, Permission.R | Permission.UX, 0),
        (1, 2, Permission.R | Permission.UX, Permission.R | Permission.SX, 2),
        (1, 0, 15, 0, 2),
        (1, 1, 15, 0, 2),
        (2, 3, Permission.R, Permission.R | Permission.W, 2),
        (3, 3, Permission.R, Permission.R | Permission.W, 2),
        (3, 2, 15, 0, 2),
        (3, 0, 15, 0, 2),
    ],
)
def test_rmpadjusts_privilege(vmpl: int, target: int, has: int, asked: int, code: int) -> None:
    with SmallGuest(vmpl=vmpl) as guest:
        if vmpl:
            guest.permit(FREE, has)
        before = guest.machine.rmp.entry(FREE).copy()
        answer = _ask(guest, "rmpadjust", FREE, 0, _attributes(target, asked))
        assert answer.code == code
        assert answer.zero == (code == 0)
        if code:
            assert guest.machine.rmp.entry(FREE) == before
        else:
            assert guest.machine.rmp.entry(FREE)["perms"][target] == asked


def test_the_running_vmsa_is_in_use() -> None:
    with SmallGuest(vmpl=0) as guest:
        before = guest.machine.rmp.entry(VMSA).copy()
        assert _ask(guest, "rmpadjust", VMSA, 0, _attributes(1)).code == RmpResult.FAIL_INUSE
        assert _ask(guest, "pvalidate", VMSA, 0, 0).code == RmpResult.FAIL_INUSE
        assert guest.machine.rmp.entry(VMSA) == before
        # One that rests is not.
        other = FREE + PAGE
        guest.make_context(other, vmpl=3)
        assert _ask(guest, "rmpadjust", other, 0, _attributes(1)).code == 0
        assert not guest.machine.rmp.entry(other)["flags"] & EntryFlag.VMSA


def test_rmpquery_of_both_sizes() -> None:
    with _guest() as guest:
        guest.top.rmpadjust(_LARGE, vmpl=2, permissions=Permission.R, size=PageSize.SIZE_2M)
        large = _ask(guest, "rmpquery", _LARGE + 7 * PAGE, 0, 2)
        assert (large.code, large.rcx & 1, large.rdx >> 8 & 0xFF, large.rdx >> 16 & 1) == (0, 1, Permission.R, 0)
        guest.permit(FREE, Permission.W, 2)
        small = _ask(guest, "rmpquery", FREE, 0, 2)
        assert (small.code, small.rcx & 1, small.rdx >> 8 & 0xFF) == (0, 0, Permission.W)
        assert _ask(guest, "rmpquery", VMSA, 0, 2).rdx >> 16 & 1 == 1
        assert _ask(guest, "rmpquery", FREE, 0, 4).code == RmpResult.FAIL_INPUT


def test_rmpquery_of_a_higher_level_is_refused() -> None:
    with SmallGuest(vmpl=3) as guest:
        assert _ask(guest, "rmpquery", FREE, 0, 1).code == RmpResult.FAIL_PERMISSION
        assert _ask(guest, "rmpquery", FREE, 0, 3).code == 0


@pytest.mark.parametrize("instruction", sorted(_CODES))
def test_a_page_of_the_hosts_is_a_nested_page_fault(instruction: str) -> None:
    with SmallGuest(vmpl=0) as guest:
        guest.invalidate(FREE)
        guest.share(FREE)
        assert _execute(guest, instruction, FREE, 0, 3) == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_RMP | _ENC | _VMPL) == _RMP | _ENC
        assert guest.vmcb.exit_info_2 == FREE
        # The host gives it: the instruction goes on.
        assert guest.host.rmpupdate(FREE, assigned=True) == RmpResult.SUCCESS
        if instruction != "pvalidate":
            guest.top.pvalidate(FREE)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert guest.vmsa().rax == 0


@pytest.mark.parametrize("instruction", sorted(_CODES))
def test_a_translation_without_c_bit_is_a_nested_page_fault(instruction: str) -> None:
    with SmallGuest(vmpl=0) as guest:
        assert _execute(guest, instruction, SHARED + FREE, 0, 3) == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_RMP | _ENC) == _RMP


@pytest.mark.parametrize("instruction", ["rmpadjust", "rmpquery"])
def test_a_page_that_is_not_validated_is_vc_404(instruction: str) -> None:
    with SmallGuest(vmpl=0) as guest:
        guest.invalidate(FREE)
        assert _execute(guest, instruction, FREE, 0, 3) == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().error_code, guest.trap().times) == (29, 0x404, 1)


@pytest.mark.parametrize("instruction", ["rmpadjust", "rmpquery"])
def test_an_operand_whose_page_table_is_forbidden(instruction: str) -> None:
    with SmallGuest(vmpl=1) as guest:
        table = 0x5000  # of the upper 2 MiB
        guest.permit(table, Permission.NONE)
        assert _execute(guest, instruction, _LARGE, 0, _attributes(3)) == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_VMPL | _TABLE | _FINAL) == _VMPL | _TABLE
        assert guest.vmcb.exit_info_2 & ~0xFFF == table
        guest.permit(table, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 0


@pytest.mark.parametrize("instruction", sorted(_CODES))
def test_an_operand_that_is_not_mapped_is_a_page_fault(instruction: str) -> None:
    with SmallGuest(vmpl=0) as guest:
        assert _execute(guest, instruction, 0x7F0000000000, 0, 3) == ExitCode.HLT
        assert guest.trap().vector == 14
        assert guest.vmsa().cr2 == 0x7F0000000000


@pytest.mark.parametrize("instruction", sorted(_CODES))
def test_an_operand_beyond_memory(instruction: str) -> None:
    with SmallGuest(vmpl=0) as guest:
        guest.top.write_u64(0x4000 + 8 * (FREE // PAGE), 1 << 40 | 7 | 1 << 51)
        assert _execute(guest, instruction, FREE, 0, 3) == ExitCode.NPF
        assert guest.vmcb.exit_info_1 & (_RMP | _ENC) == _RMP | _ENC


@pytest.mark.parametrize("instruction", sorted(_CODES))
@pytest.mark.parametrize("address", [1 << 47, 1 << 63, (1 << 64) - (1 << 48)])
def test_an_operand_that_is_not_canonical(instruction: str, address: int) -> None:
    with SmallGuest(vmpl=0) as guest:
        assert _execute(guest, instruction, address, 0, 3) == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().error_code, guest.trap().times) == (13, 0, 1)


def test_a_guest_without_snp_has_no_such_instructions() -> None:
    # sev_features without SNP: VMRUN of such a context is refused on a machine that launched an SNP guest.
    with SmallGuest() as guest:
        guest.top.write_u64(VMSA + 0x3B0, 0)
        assert guest.run() == ExitCode.INVALID
