# SPDX-License-Identifier: GPL-2.0-or-later
"""Without AVX, instructions with a VEX prefix are #UD, but for BMI's (APM volume 3, "AVX and XOP")."""

from __future__ import annotations

import pytest

from tests.small_guest import CODE, FREE, VMSA, SmallGuest
from veil.snp import ExitCode

_UD = 6
_VEX = {
    "vpaddd xmm0, xmm1, xmm2": "c5f1fec2",
    "vpaddd ymm0, ymm1, ymm2": "c5f5fec2",
    "vpxor xmm0, xmm1, xmm2 with three bytes": "c4e171efc2",
    "vmovdqu xmm0, [rax]": "c5fa6f00",
    "vmovdqu [rax], ymm0": "c5fe7f00",
    "vzeroupper": "c5f877",
    "vpshufb xmm0, xmm1, xmm2": "c4e27100c2",
    "vpbroadcastb ymm0, xmm1": "c4e27d78c1",
    "vfmadd231sd xmm0, xmm1, xmm2": "c4e2f1b9c2",
    "vpalignr xmm0, xmm1, xmm2, 4": "c4e3710fc204",
    "vaesenc xmm0, xmm1, xmm2": "c4e271dcc2",
    "vldmxcsr [rax]": "c5f8ae10",
    "0F 38 F0, which is MOVBE without it": "c4e278f000",
    "0F 38 F4": "c4e278f400",
    "0F 3A F1": "c4e37bf1c001",
    "an opcode of none": "c5f805",
}


@pytest.mark.parametrize("code", _VEX.values(), ids=_VEX)
def test_undefined(code: str) -> None:
    with SmallGuest() as guest:
        vmsa = guest.vmsa()
        vmsa.fpreg_xmm[:] = bytes(range(256))
        vmsa.rax = FREE
        guest.top.write(VMSA, bytes(vmsa))
        guest.top.write(CODE, bytes.fromhex(code).ljust(15, b"\xf4"))
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.rip, trap.times) == (_UD, CODE, 1)
        after = guest.vmsa()
        assert bytes(after.fpreg_xmm) == bytes(range(256))
        assert not any(guest.top.read(FREE, 32))


#: with RBX 0xf0, RCX 0xff0 and RDX 2: the register that changes, and its value
_BMI = {
    "andn rax, rbx, rcx": ("c4e2e0f2c1", "rax", 0xF00),
    "blsr rax, rcx": ("c4e2f8f3c9", "rax", 0xFE0),
    "bzhi rax, rcx, rdx": ("c4e2e8f5c1", "rax", 0),
    "pdep rax, rbx, rcx": ("c4e2e3f5c1", "rax", 0xF00),
    "pext rax, rcx, rbx": ("c4e2f2f5c3", "rax", 0xF),
    "mulx rax, rbx, rcx": ("c4e2e3f6c1", "rbx", 0x1FE0),
    "bextr rax, rcx, rdx": ("c4e2e8f7c1", "rax", 0),
    "shlx rax, rcx, rdx": ("c4e2e9f7c1", "rax", 0x3FC0),
    "rorx rax, rcx, 4": ("c4e3fbf0c104", "rax", 0xFF),
}


@pytest.mark.parametrize("name", _BMI)
def test_those_of_bmi_are_there(name: str) -> None:
    code, register, expected = _BMI[name]
    text = ", ".join(f"{byte:#x}" for byte in bytes.fromhex(code))
    with SmallGuest(f"mov ecx, 0xff0\nmov ebx, 0xf0\nmov edx, 2\n.byte {text}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert getattr(guest.vmsa(), register) == expected
