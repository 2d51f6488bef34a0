# SPDX-License-Identifier: GPL-2.0-or-later
"""MXCSR (APM volume 1, 4.2.2): the exceptions that SSE met, flush to zero, and what it does not take."""

from __future__ import annotations

import struct

import pytest

from tests.small_guest import FREE, VMSA, SmallGuest
from veil.snp import CpuFeature, ExitCode
from veil.snp.layouts import Vmsa

_GP = 13
_INVALID, _ZERO, _OVERFLOW, _UNDERFLOW, _INEXACT = 1, 4, 8, 16, 32
_MASKED, _FLUSH = 0x1F80, 1 << 15
_ONE, _ZERO_FLOAT, _THREE, _LARGE, _TINY, _NAN = 0x3F800000, 0, 0x40400000, 0x7F000000, 0x00800000, 0x7F800001
_LOAD = "mov eax, {:#x}\nmovd xmm0, eax\nmov eax, {:#x}\nmovd xmm1, eax\n"
_STORE = f"stmxcsr [{FREE}]\nhlt"

_CASES = [
    ("addss", _ONE, _ONE, 0),
    ("divss", _ONE, _ZERO_FLOAT, _ZERO),
    ("divss", _ZERO_FLOAT, _ZERO_FLOAT, _INVALID),
    ("addss", _NAN, _ONE, _INVALID),
    ("divss", _ONE, _THREE, _INEXACT),
    ("mulss", _LARGE, _LARGE, _OVERFLOW | _INEXACT),
    ("mulss", _TINY, _TINY, _UNDERFLOW | _INEXACT),
]


@pytest.mark.parametrize(("operation", "first", "second", "flags"), _CASES)
def test_exceptions_leave_their_flags(operation: str, first: int, second: int, flags: int) -> None:
    """They stay until they are cleared: a second operation without any changes nothing."""
    code = f"{_LOAD.format(first, second)}{operation} xmm0, xmm1\n{_LOAD.format(_ONE, _ONE)}addss xmm0, xmm1\n{_STORE}"
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.top.read_u32(FREE) == _MASKED | flags
        assert guest.vmsa().mxcsr == _MASKED | flags, "the VMSA has it too"


@pytest.mark.parametrize("save", ["fxsave64", "xsave64"])
def test_saved_and_restored(save: str) -> None:
    """What is restored replaces the flags."""
    restore = save.replace("save", "rstor")
    code = f"""
        mov ecx, 0
        mov edx, 0
        mov eax, 3
        {"xsetbv" if save == "xsave64" else ""}
        {_LOAD.format(_ONE, _ZERO_FLOAT)}
        mov rbx, {FREE}
        mov eax, 3
        {save} [rbx]
        divss xmm0, xmm1
        mov eax, 3
        {save} [rbx + 0x400]
        mov eax, 3
        {restore} [rbx]
        stmxcsr [rbx + 0x800]
        hlt
    """
    with SmallGuest(code, cpu_features={CpuFeature.XSAVE}) as guest:
        vmsa = guest.vmsa()
        vmsa.cr4 |= 1 << 18
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        flags = [guest.top.read_u32(FREE + at) for at in (24, 0x400 + 24, 0x800)]
        assert flags == [_MASKED, _MASKED | _ZERO, _MASKED]


def test_flags_are_cleared_by_who_loads_it() -> None:
    code = f"{_LOAD.format(_ONE, _ZERO_FLOAT)}divss xmm0, xmm1\nmov dword ptr [{FREE + 8}], {_MASKED}\n"
    with SmallGuest(f"{code}ldmxcsr [{FREE + 8}]\n{_STORE}") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.top.read_u32(FREE) == _MASKED


def test_they_are_the_contexts() -> None:
    """Another context that runs in between has none of them, and leaves none."""
    code = f"{_LOAD.format(_ONE, _ZERO_FLOAT)}divss xmm0, xmm1\nhlt\n{_STORE}"
    with SmallGuest(code) as guest:
        other = guest.make_context(FREE + 0x1000, vmpl=3)
        guest.put(f"{_LOAD.format(_ONE, _THREE)}divss xmm0, xmm1\nhlt", FREE + 0x2000)
        guest.top.write_u64(FREE + 0x1000 + Vmsa.rip.offset, FREE + 0x2000)
        assert guest.run() == ExitCode.HLT
        assert guest.run(other) == ExitCode.HLT
        assert guest.run() == ExitCode.HLT
        assert guest.top.read_u32(FREE) == guest.vmsa().mxcsr == _MASKED | _ZERO
        assert guest.vmsa(FREE + 0x1000).mxcsr == _MASKED | _INEXACT


@pytest.mark.parametrize("flush", [False, True])
def test_flush_to_zero_is_sses(flush: bool) -> None:
    """And not x87's, whose result is a denormal number whatever MXCSR says."""
    mxcsr = _MASKED | (_FLUSH if flush else 0)
    code = f"mov dword ptr [{FREE}], {mxcsr}\nldmxcsr [{FREE}]\n{_LOAD.format(_TINY, 0x3F000000)}"
    code += f"movd [{FREE + 16}], xmm0\nmovd [{FREE + 20}], xmm1\nmulss xmm0, xmm1\nmovd [{FREE + 8}], xmm0\n"
    code += f"fld dword ptr [{FREE + 16}]\nfmul dword ptr [{FREE + 20}]\nfstp dword ptr [{FREE + 12}]\n{_STORE}"
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert struct.unpack("<2I", guest.top.read(FREE + 8, 8)) == (0 if flush else _TINY // 2, _TINY // 2)
        assert guest.top.read_u32(FREE) == mxcsr | (_UNDERFLOW | _INEXACT if flush else 0)


@pytest.mark.parametrize("bit", [16, 17, 31])
@pytest.mark.parametrize("way", ["ldmxcsr", "fxrstor64"])
def test_reserved_bits(way: str, bit: int) -> None:
    at = FREE + 24 if way == "fxrstor64" else FREE
    code = f"mov rbx, {FREE}\nfxsave64 [rbx]\nmov dword ptr [{at}], {_MASKED | 1 << bit}\n{way} [rbx]"
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_GP, 0)
        assert guest.vmsa().mxcsr == _MASKED
