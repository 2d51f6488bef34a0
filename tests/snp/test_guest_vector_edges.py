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


def _deposited(source: int, mask: int) -> int:
    """PDEP (APM volume 3)."""
    found = 0
    for bit in range(64):
        if mask >> bit & 1:
            found |= (source & 1) << bit
            source >>= 1
    return found


@pytest.mark.parametrize("mask", [0x8000_0000_0000_F0F0, (1 << 64) - 1, 0xFFFF_0000_0000_0001])
@pytest.mark.parametrize("bits", [32, 64])
def test_pdep(mask: int, bits: int) -> None:
    source = 0xFEDC_BA98_7654_3211
    vmsa = _run("pdep rax, rbx, rcx" if bits == 64 else "pdep eax, ebx, ecx", rbx=source, rcx=mask)
    kept = (1 << bits) - 1
    assert vmsa.rax == _deposited(source & kept, mask & kept)


_WORDS, _DOUBLEWORDS = 16, 32


def _horizontally(data: bytes, width: int, sign: int, saturate: bool) -> bytes:
    size = width // 8
    signed = [int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size)]
    found = [first + sign * second for first, second in zip(signed[::2], signed[1::2], strict=True)]
    low, high = -(1 << width - 1), (1 << width - 1) - 1
    if saturate:
        found = [min(max(value, low), high) for value in found]
    return b"".join((value & (1 << width) - 1).to_bytes(size, "little") for value in found)


@pytest.mark.parametrize(("size", "load", "register"), [(8, "movq", "mm"), (16, "movdqu", "xmm")])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    ("name", "width", "sign", "saturate"),
    [
        ("phaddw", _WORDS, 1, False), ("phaddd", _DOUBLEWORDS, 1, False), ("phaddsw", _WORDS, 1, True),
        ("phsubw", _WORDS, -1, False), ("phsubd", _DOUBLEWORDS, -1, False), ("phsubsw", _WORDS, -1, True),
    ],
)  # fmt: skip
def test_sums_within_a_register(
    name: str, width: int, sign: int, saturate: bool, same: bool, size: int, load: str, register: str
) -> None:
    """Of a register with itself they took half of the result for the source."""
    source = 0 if same else 1
    code = f"{load} {register}0, [{FREE}]\n{load} {register}1, [{FREE + 16}]\n{name} {register}0, {register}{source}\n"
    with SmallGuest(f"{code}{load} [{FREE + 32}], {register}0\nemms\nhlt") as guest:
        values = bytes.fromhex("ff7f 0100 3412 7856 0080 ffff cdab 0f0f  0102 0304 0506 0708 090a 0b0c 0d0e 0f10")
        guest.top.write(FREE, values)
        assert guest.run() == ExitCode.HLT
        first, second = (values[at : at + size] for at in (0, 16 * source))
        expected = b"".join(_horizontally(data, width, sign, saturate) for data in (first, second))
        assert guest.top.read(FREE + 32, size) == expected
