# SPDX-License-Identifier: GPL-2.0-or-later
"""REP MOVS: what it leaves is what so many single elements leave, wherever pages end and whatever overlaps."""

from __future__ import annotations

import random

import pytest

from tests.small_guest import FREE, PAGE, VMSA, SmallGuest
from veil.snp import ExitCode

_LETTERS = {1: "b", 2: "w", 4: "d", 8: "q"}
_PAGES = 6
_TIMES = 40


def _moved(memory: bytearray, source: int, target: int, count: int, size: int, step: int) -> None:
    """Element by element."""
    for at in range(count):
        first, second = source + at * step, target + at * step
        memory[second : second + size] = memory[first : first + size]


@pytest.mark.parametrize("size", _LETTERS)
@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_moved(size: int, *, backwards: bool) -> None:
    chance = random.Random(size)
    code = f"again: {'std' if backwards else 'cld'}\nrep movs{_LETTERS[size]}\ncld\nhlt\njmp again"
    with SmallGuest(code) as guest:
        for _ in range(_TIMES):
            memory = bytearray(chance.randbytes(_PAGES * PAGE))
            for at in range(0, len(memory), PAGE):
                guest.top.write(FREE + at, bytes(memory[at : at + PAGE]))
            count = chance.choice([0, 1, 2, 7, chance.randrange(2 * PAGE // size)])
            room = len(memory) - count * size
            source = chance.randrange(room)
            near = max(0, min(room - 1, source + chance.choice([-PAGE, -size, -1, 0, 1, size, 3 * size, PAGE])))
            target = chance.choice([near, chance.randrange(room)])
            step = -size if backwards else size
            behind = (count - 1) * size if backwards and count else 0
            vmsa = guest.vmsa()
            vmsa.rsi, vmsa.rdi, vmsa.rcx = FREE + source + behind, FREE + target + behind, count
            guest.top.write(VMSA, bytes(vmsa))
            assert guest.run() == ExitCode.HLT
            _moved(memory, source + behind, target + behind, count, size, step)
            found = b"".join(guest.top.read(FREE + at, PAGE) for at in range(0, len(memory), PAGE))
            assert found == memory
            vmsa = guest.vmsa()
            ends = (FREE + source + behind + count * step, FREE + target + behind + count * step, 0)
            assert (vmsa.rsi, vmsa.rdi, vmsa.rcx) == ends


def test_two_addresses_of_one_page() -> None:
    """What is read was written by the same instruction, though the addresses are far apart."""
    # Both translations are there before.
    with SmallGuest("mov al, [rsi]\nmov [rdi + 100], al\nmov ecx, 64\nrep movsb\nhlt") as guest:
        guest.map(FREE + 2 * PAGE, FREE)
        guest.top.write(FREE, b"ab" + bytes(PAGE - 2))
        vmsa = guest.vmsa()
        vmsa.rsi, vmsa.rdi = FREE, FREE + 2 * PAGE + 2
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        assert guest.top.read(FREE, 66) == b"ab" * 33


def test_code_that_is_moved_over_code() -> None:
    """It was translated already: what was moved there runs."""
    code = f"""
        mov rbx, {FREE}
        call rbx
        mov r8, rax
        lea rsi, [rip + other]
        mov rdi, rbx
        mov ecx, 8
        rep movsb
        call rbx
        hlt
    other:
        mov eax, 2
        ret
    """
    with SmallGuest(code) as guest:
        guest.put("mov eax, 1\nret", FREE)
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().r8, guest.vmsa().rax) == (1, 2)


@pytest.mark.parametrize("prefix", ["", ".byte 0x64\n", ".byte 0x67\n"], ids=["", "fs", "addr32"])
def test_a_segment_and_short_addresses(prefix: str) -> None:
    """FS has a base; and with 32-bit addresses the upper halves do not count."""
    with SmallGuest(f"mov ecx, 16\n{prefix}rep movsb\nhlt") as guest:
        guest.top.write(FREE, b"without a base..")
        guest.top.write(FREE + PAGE, b"with a base.....")
        vmsa = guest.vmsa()
        vmsa.fs.base = PAGE
        upper = 5 << 32 if "67" in prefix else 0
        vmsa.rsi, vmsa.rdi = FREE + upper, FREE + 2 * PAGE + upper
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        expected = b"with a base....." if "64" in prefix else b"without a base.."
        assert guest.top.read(FREE + 2 * PAGE, 16) == expected
