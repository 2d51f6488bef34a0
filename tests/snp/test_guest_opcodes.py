# SPDX-License-Identifier: GPL-2.0-or-later
"""Encodings that are undefined (APM volume 3): #UD, whatever mode and level; those beside them are executed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.small_guest import CODE, FREE, VMSA, SmallGuest
from veil.snp import ExitCode
from veil.snp.layouts import VmsaSegment

_UD = 6
_LOCK = b"\xf0"
_MEMORY, _REGISTER = 0x03, 0xC3  # ModRM: [RBX], EBX; with the operation in bits 5:3
_IMMEDIATE = {0x80: 1, 0x81: 4, 0x83: 1, 0xF6: 1, 0xF7: 4, 0xC6: 1, 0xC7: 4}
_HLT = b"\xf4"


def _bytes(opcode: int) -> bytes:
    return bytes((0x0F, opcode & 0xFF)) if opcode > 0xFF else bytes((opcode,))


def _lockable() -> Iterator[tuple[int, int]]:
    """Opcode (0F and the second byte above 0FFh) and operation."""
    for group in range(7):  # ADD, OR, ADC, SBB, AND, SUB, XOR
        yield from ((8 * group, 0), (8 * group + 1, 0))
        yield from ((opcode, group) for opcode in (0x80, 0x81, 0x83))
    yield from ((opcode, operation) for opcode in (0xF6, 0xF7) for operation in (2, 3))
    yield from ((opcode, operation) for opcode in (0xFE, 0xFF) for operation in (0, 1))
    yield from ((opcode, 0) for opcode in (0x86, 0x87, 0x1AB, 0x1B3, 0x1BB, 0x1B0, 0x1B1, 0x1C0, 0x1C1))
    yield from ((0x1BA, operation) for operation in (5, 6, 7))
    yield (0x1C7, 1)


def _code(prefix: bytes, opcode: int, modrm: int) -> bytes:
    immediate = 1 if opcode == 0x1BA else _IMMEDIATE.get(opcode, 0)
    if opcode in (0xF6, 0xF7) and modrm & 0x38:
        immediate = 0
    return prefix + _bytes(opcode) + bytes((modrm,)) + bytes(immediate) + _HLT


def _run(code: bytes, *, legacy: bool = False) -> int:
    """The vector of the exception; -1: none, and it went on behind the instruction."""
    with SmallGuest(cpl=0) as guest:
        vmsa = guest.vmsa()
        vmsa.rax, vmsa.rcx, vmsa.rdx = 1, 1, 1
        vmsa.rbx = vmsa.rsi = FREE
        if legacy:
            vmsa.cs = VmsaSegment(8, 0xC9B, 0xFFFFFFFF, 0)
        guest.top.write(VMSA, bytes(vmsa))
        guest.top.write(CODE, code)
        assert guest.run() == ExitCode.HLT
        if guest.trap().times:
            assert guest.trap().rip == CODE
            return guest.trap().vector
        assert guest.vmsa().rip == CODE + len(code)
        return -1


@pytest.mark.parametrize(("opcode", "operation"), list(_lockable()), ids=lambda number: f"{number:x}")
def test_lock_is_for_memory(opcode: int, operation: int) -> None:
    """BTS, BTR and BTC of a register ended the process of the host."""
    assert _run(_code(_LOCK, opcode, _MEMORY | operation << 3)) == -1
    assert _run(_code(_LOCK, opcode, _REGISTER | operation << 3)) == _UD


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(b"\x90", id="NOP"),
        pytest.param(b"\x89\x03", id="MOV"),
        pytest.param(b"\x8b\x03", id="MOV from memory"),
        pytest.param(b"\x03\x03", id="ADD from memory"),
        pytest.param(b"\x39\x03", id="CMP"),
        pytest.param(b"\x83\x3b\x00", id="CMP with a number"),
        pytest.param(b"\xf7\x03\x00\x00\x00\x00", id="TEST"),
        pytest.param(b"\xf7\x23", id="MUL"),
        pytest.param(b"\xff\x33", id="PUSH"),
        pytest.param(b"\x50", id="PUSH of a register"),
        pytest.param(b"\xeb\x00", id="JMP"),
        pytest.param(b"\x8d\x03", id="LEA"),
        pytest.param(b"\xd1\x23", id="SHL"),
        pytest.param(b"\xa4", id="MOVSB"),
        pytest.param(b"\x0f\xa3\x03", id="BT"),
        pytest.param(b"\x0f\xa3\xc3", id="BT of a register"),
        pytest.param(b"\x0f\xba\x23\x01", id="BT with a number"),
        pytest.param(b"\x0f\xba\xe3\x01", id="BT of a register with a number"),
        pytest.param(b"\x0f\xaf\x03", id="IMUL"),
        pytest.param(b"\x0f\xa2", id="CPUID"),
        pytest.param(b"\x0f\x01\xd9", id="VMMCALL"),
        pytest.param(b"\x0f\x38\xf1\x03", id="MOVBE"),
        pytest.param(b"\x0f\x28\x03", id="MOVAPS"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["64-bit mode", "compatibility mode"])
def test_lock_is_for_nothing_else(code: bytes, legacy: bool) -> None:
    assert _run(_LOCK + code + _HLT, legacy=legacy) == _UD


def test_lock_makes_cr0_cr8() -> None:
    """CPUID names it (AltMovCr8)."""
    assert _run(_LOCK + b"\x0f\x20\xc0" + _HLT) == -1


@pytest.mark.parametrize("prefix", [b"", b"\x66", b"\x48"])
@pytest.mark.parametrize("opcode", [0xF0, 0xF1])
def test_movbe_is_for_memory(opcode: int, prefix: bytes) -> None:
    code = prefix + bytes((0x0F, 0x38, opcode))
    assert _run(code + bytes((_MEMORY,)) + _HLT) == -1
    assert _run(code + bytes((_REGISTER,)) + _HLT) == _UD


@pytest.mark.parametrize("operation", range(8))
@pytest.mark.parametrize(("opcode", "modrm"), [(0xC6, _MEMORY), (0xC7, _MEMORY), (0xC7, _REGISTER), (0x8F, _MEMORY)])
def test_operations_that_there_are_not(opcode: int, modrm: int, operation: int) -> None:
    """XABORT, XBEGIN and XOP are among them."""
    assert _run(_code(b"", opcode, modrm | operation << 3)) == (-1 if not operation else _UD)
