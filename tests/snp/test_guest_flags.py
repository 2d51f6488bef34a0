# SPDX-License-Identifier: GPL-2.0-or-later
"""RFLAGS, which the core computes when somebody looks, from the operands of the instruction that set them last."""

from __future__ import annotations

import pytest

from tests.small_guest import FREE, SmallGuest
from veil.snp import ExitCode, Permission

CARRY, PARITY, AUXILIARY, ZERO, OVERFLOW = 1, 1 << 2, 1 << 4, 1 << 6, 1 << 11
USUAL = 0x202


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("instruction", ["cmpxchg8b", "cmpxchg16b", "lock cmpxchg8b", "lock cmpxchg16b"])
def test_compare_and_exchange_changes_zf_alone(instruction: str, *, equal: bool, stepped: bool) -> None:
    """The operands before it are all ones: none of their bits may be in RFLAGS (NT, and the next IRET is #GP)."""
    code = f"""
        mov rdi, {FREE}
        mov eax, {0 if equal else 1}
        mov r8, 0x8000000000000000
        mov r9, -1
        push {USUAL}
        popfq
        add r8, r9
        {instruction} [rdi]
        hlt
    """
    with SmallGuest(code) as guest:
        guest.machine.set_single_step(stepped)
        while (exit_code := guest.run()) == ExitCode.INTR:
            pass
        assert exit_code == ExitCode.HLT
        assert guest.vmsa().rflags == USUAL | CARRY | PARITY | OVERFLOW | (ZERO if equal else 0)


@pytest.mark.parametrize("rights", [Permission.NONE, Permission.R], ids=["no access", "no store"])
@pytest.mark.parametrize(
    ("instruction", "value", "flags"),
    [
        # Flags of XOR and of nothing before in the block: both are worked out before the store.
        ("xor ebx, ebp\nseto byte ptr [rdi]", 0x00, PARITY),
        ("mov ebx, 257\nadd ebx, -1\njmp 1f\n1: setge byte ptr [rdi]", 0x01, CARRY | PARITY | AUXILIARY),
        ("rcl byte ptr [rdi], 1", 0x01, 0),
        ("xor ebx, ebp\nrcr byte ptr [rdi], 1", 0x00, PARITY),
        ("rcr byte ptr [rdi], 1", 0x80, OVERFLOW),
    ],
)
def test_a_refused_access_is_made_again_with_the_same_flags(
    instruction: str, value: int, flags: int, rights: Permission
) -> None:
    """Some of these work out all flags and then access memory: there the host may have to give the page first."""
    code = f"mov rdi, {FREE}\nmov ebx, 5\nmov ebp, 6\npush {USUAL | CARRY}\npopfq\n{instruction}\nhlt"
    with SmallGuest(code) as guest:
        guest.permit(FREE, rights)
        assert guest.run() == ExitCode.NPF
        guest.permit(FREE, Permission.ALL)
        assert guest.run() == ExitCode.HLT
        assert guest.top.read(FREE, 1)[0] == value
        assert guest.vmsa().rflags == USUAL | flags
