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


#: on general registers as well, without a VEX prefix
_OTHERS = {
    "movbe rax, [rsi]": "480f38f006",
    "movbe [rsi], ax": "660f38f106",
    "crc32 eax, ebx": "f20f38f1c3",
    "adcx eax, ebx": "660f38f6c3",
    "adox eax, ebx": "f30f38f6c3",
}
_GENERAL = {**{name: code for name, (code, _, _) in _BMI.items()}, **_OTHERS}
_OSFXSR, _EM, _TS = 1 << 9, 1 << 2, 1 << 3


def _bytes(code: str) -> str:
    return ".byte " + ", ".join(f"{byte:#x}" for byte in bytes.fromhex(code))


@pytest.mark.parametrize("without", ["OSFXSR", "EM", "TS"])
@pytest.mark.parametrize("code", _GENERAL.values(), ids=_GENERAL)
def test_what_is_about_general_registers_asks_for_no_sse(code: str, without: str) -> None:
    """Linux unpacks itself with them before it turns SSE on."""
    with SmallGuest(f"mov esi, {FREE}\n{_bytes(code)}\nhlt") as guest:
        vmsa = guest.vmsa()
        vmsa.cr4 &= ~_OSFXSR if without == "OSFXSR" else -1
        vmsa.cr0 |= {"EM": _EM, "TS": _TS}.get(without, 0)
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0


@pytest.mark.parametrize(("without", "vector"), [("OSFXSR", _UD), ("EM", _UD), ("TS", 7)])
def test_what_is_about_sse_asks_for_it(without: str, vector: int) -> None:
    with SmallGuest("pshufb xmm0, xmm1\nhlt") as guest:
        vmsa = guest.vmsa()
        vmsa.cr4 &= ~_OSFXSR if without == "OSFXSR" else -1
        vmsa.cr0 |= {"EM": _EM, "TS": _TS}.get(without, 0)
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip, guest.trap().times) == (vector, CODE, 1)


@pytest.mark.parametrize("code", _GENERAL.values(), ids=_GENERAL)
def test_x87_does_not_notice(code: str) -> None:
    """The top of the stack, and which registers are empty: MMX would change both."""
    with SmallGuest(f"mov esi, {FREE}\nfninit\nfld1\nfldpi\n{_bytes(code)}\nfnstenv [rsi + 64]\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        status, tags = guest.top.read_u16(FREE + 68), guest.top.read_u16(FREE + 72)
        assert status >> 11 & 7 == 6
        assert tags & 0xFFF == 0xFFF
