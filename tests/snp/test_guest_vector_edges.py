# SPDX-License-Identifier: GPL-2.0-or-later
"""Values and prefixes at which QEMU's core went wrong, found by comparing it with a processor."""

from __future__ import annotations

import pytest

from tests.small_guest import FREE, VMSA, SmallGuest
from veil.snp import ExitCode
from veil.snp.layouts import Vmsa

_FLAGS = 0x8D5
_MASKED = 0x1F80


def _run(code: str, **registers: int) -> Vmsa:
    with SmallGuest(f"{code}\nhlt") as guest:
        vmsa = guest.vmsa()
        for name, value in registers.items():
            setattr(vmsa, name, value)
        guest.top.write(VMSA, bytes(vmsa))
        guest.top.write(FREE, bytes(range(1, 17)) + bytes(range(9, 25)))
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        return guest.vmsa()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("which", ["pcmpestri", "pcmpestrm"])
@pytest.mark.parametrize("control", [0x00, 0x04, 0x08, 0x0C, 0x0D, 0x40])
@pytest.mark.parametrize("register", ["rax", "rdx"])
def test_lengths_of_strings_are_never_negative(which: str, wide: bool, control: int, register: str) -> None:
    """The host's process read far outside of the registers, and ended."""
    opcode = 0x61 if which == "pcmpestri" else 0x60
    code = f"movdqu xmm0, [{FREE}]\nmovdqu xmm3, [{FREE + 16}]\n.byte 0x66, {0x48 if wide else 0x40}, 0x0f, 0x3a"
    code += f", {opcode:#x}, 0xc3, {control:#x}"
    lengths = (1 << 63, 1 << 32, (1 << 64) - 17) if wide else (1 << 31, 0x7FFFFFFF, 0xFFFFFF00)

    def results(length: int) -> tuple[int, int, bytes]:
        other = "rdx" if register == "rax" else "rax"
        vmsa = _run(code, **{register: length, other: 12})
        return vmsa.rcx, vmsa.rflags & _FLAGS, bytes(vmsa.fpreg_xmm)[:16]

    assert {results(length) for length in lengths} == {results(16)}


@pytest.mark.parametrize("instruction", [(0x38, 0x08), (0x38, 0x00), (0x38, 0x1C), (0x3A, 0x0F)])
def test_rex_extends_no_mmx_register(instruction: tuple[int, int]) -> None:
    """It wrote over MXCSR, and over how SSE rounds in every context."""
    load = f"movq mm4, [{FREE}]\nmovq mm5, [{FREE + 8}]\n"
    found = []
    for rex in ("", "0x4c, ", "0x4d, "):
        immediate = ", 3" if instruction[0] == 0x3A else ""
        code = f"{load}.byte {rex}0x0f, {instruction[0]}, {instruction[1]}, 0xe5{immediate}\nmovq rbx, mm4\nemms"
        vmsa = _run(code)
        assert vmsa.mxcsr == _MASKED
        found.append((vmsa.rbx, bytes(vmsa.fpreg_xmm)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("index", [0, 5, 30, 31, 32, 63, 64, 200, 255])
@pytest.mark.parametrize("bits", [32, 64])
def test_bzhi(index: int, bits: int) -> None:
    vmsa = _run("bzhi rax, rbx, rcx" if bits == 64 else "bzhi eax, ebx, ecx", rbx=(1 << 64) - 1, rcx=0xABCD00 | index)
    assert vmsa.rax == (1 << min(index, bits)) - 1
    assert vmsa.rflags & 1 == (index >= bits)


@pytest.mark.parametrize("name", ["rcpps", "rcpss", "rsqrtps", "rsqrtss"])
def test_estimates_meet_no_exceptions(name: str) -> None:
    assert _run(f"movdqu xmm1, [{FREE}]\n{name} xmm0, xmm1\nxorps xmm2, xmm2\n{name} xmm0, xmm2").mxcsr == _MASKED
