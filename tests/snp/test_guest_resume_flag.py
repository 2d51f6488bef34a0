# SPDX-License-Identifier: GPL-2.0-or-later
"""RFLAGS.RF in the image that an event pushes: faults set it, so that an instruction breakpoint does not hit twice."""

from __future__ import annotations

import pytest

from tests.small_guest import CODE, FREE, STACK, SmallGuest
from veil.snp import ExitCode

_RF = 1 << 16
_FLAGS_IMAGE = STACK - 24
_DB = 1
_SINGLE_STEP = 1 << 14


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("xor ecx, ecx\ndiv ecx", 0),
        ("ud2", 6),
        ("mov eax, -1\nmov cr4, rax", 13),
        ("mov rax, 0x40000000000\nmov al, [rax]", 14),
        ("cpuid", 29),
    ],
)
def test_faults_set_it(code: str, vector: int) -> None:
    with SmallGuest(f"{code}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == vector
        assert guest.top.read_u64(_FLAGS_IMAGE) & _RF


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("int3", 3),
        ("int 0x30", 0x30),
        (".byte 0xf1", _DB),
        ("pushfq\nor qword ptr [rsp], 0x100\npopfq\nnop", _DB),
    ],
)
def test_traps_do_not(code: str, vector: int) -> None:
    with SmallGuest(f"{code}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == vector
        assert not guest.top.read_u64(_FLAGS_IMAGE) & _RF


def test_it_ends_with_the_instruction_that_iret_returns_to() -> None:
    code = f"""
        push 0x10
        push {STACK}
        push {0x202 | _RF}
        push 8
        lea rax, [rip + 1f]
        push rax
        iretq
    1:  nop
        mov [{FREE}], rax
        hlt
    """
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rflags == 0x202


@pytest.mark.parametrize("cpl", [0, 3])
def test_int1_is_a_trap_that_leaves_dr6_alone(cpl: int) -> None:
    """It was #UD. Its gate's DPL does not count, as it would for INT."""
    with SmallGuest(".byte 0xf1\nhlt", cpl=cpl) as guest:
        gate = guest.vmsa().idtr.base + 16 * _DB
        guest.top.write(gate + 5, b"\x8e")
        before = guest.vmsa().dr6
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.rip, trap.times) == (_DB, CODE + 1, 1)
        assert guest.vmsa().dr6 == before
        assert not before & _SINGLE_STEP
