# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux does to instructions that it moves: relocate them, and join their NOPs (arch/x86/kernel/alternative.c)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import iced_x86

__all__ = ["CALL", "INT3", "JMP8", "JMP32", "NOPS", "RET", "join_nops", "relocate", "split"]

CALL, JMP32, JMP8, RET, INT3 = 0xE8, 0xE9, 0xEB, 0xC3, 0xCC

# asm/nops.h; NOPS[n] has n bytes.
_LONGEST_PLAIN = ["", "90", "6690", "0f1f00", "0f1f4000", "0f1f440000", "660f1f440000", "0f1f8000000000",
                  "0f1f840000000000"]  # fmt: skip
NOPS = [bytes.fromhex(code) for code in _LONGEST_PLAIN]
for _prefix in (b"\x2e", b"\x66", b"\x66"):
    NOPS.append(_prefix + NOPS[-1])
_NOP_MAX = len(NOPS) - 1

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")


class Instruction(NamedTuple):
    """One instruction of a piece of code: where it stands in it, and its field that is relative to RIP, if any."""

    offset: int
    length: int
    opcode: int
    """Its first opcode byte, 0x0Fxx for two."""
    repeats: bool
    """Its first prefix is REP."""
    branch: tuple[int, int] | None
    """(offset, size) of a relative branch's displacement."""
    memory: tuple[int, int] | None
    """(offset, size) of a RIP-relative operand's displacement."""

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.length

    @property
    def is_nop(self) -> bool:
        """NOP and NOPL, as insn_is_nop() knows them."""
        return self.opcode == 0x0F1F or (self.opcode == 0x90 and not self.repeats)


@lru_cache(1 << 14)
def split(code: bytes) -> tuple[Instruction, ...]:
    """The instructions of `code`, up to the first that is not valid."""
    decoder = iced_x86.Decoder(64, code)
    found = []
    while decoder.can_decode:
        instruction = decoder.decode()
        if not instruction:
            break
        offset = decoder.position - instruction.len
        opcode, repeats = _opcode(code[offset : offset + instruction.len])
        branch = memory = None
        if opcode in (CALL, JMP32) or opcode & 0xFFF0 == 0x0F80:
            branch = (instruction.len - 4, 4)
        elif opcode == JMP8 or (opcode & 0xF0 == 0x70 and opcode < 0x100):
            branch = (instruction.len - 1, 1)
        if instruction.is_ip_rel_memory_operand:
            constants = decoder.get_constant_offsets(instruction)
            memory = (constants.displacement_offset, constants.displacement_size)
        found.append(Instruction(offset, instruction.len, opcode, repeats, branch, memory))
    return tuple(found)


def _opcode(code: bytes) -> tuple[int, bool]:
    at = 0
    while at < len(code) - 1 and code[at] in _PREFIXES:
        at += 1
    if code[at] & 0xF0 == 0x40 and at < len(code) - 1:  # REX
        at += 1
    opcode = code[at] << 8 | code[at + 1] if code[at] == 0x0F and at + 1 < len(code) else code[at]
    return opcode, code[0] == 0xF3


def _nop(length: int) -> bytes:
    """add_nop(): one instruction; a jump over INT3s where there is no NOP so long."""
    if length <= _NOP_MAX:
        return NOPS[length]
    if length < 128:
        return bytes([JMP8, length - 2]).ljust(length, b"\xcc")
    return (bytes([JMP32]) + (length - 5).to_bytes(4, "little")).ljust(length, b"\xcc")


@lru_cache(1 << 14)
def join_nops(code: bytes) -> bytes:
    """optimize_nops(): each run of NOPs becomes one, but a single one at the end stays as it is."""
    if b"\x90" not in code and b"\x0f\x1f" not in code:
        return code
    result = bytearray(code)
    run = None
    for instruction in split(code):
        if instruction.is_nop:
            if run is None:
                if instruction.end == len(code):
                    break
                run = instruction.offset
            continue
        if run is not None:
            result[run : instruction.offset] = _nop(instruction.offset - run)
            run = None
    else:
        if run is not None:
            end = split(code)[-1].end
            result[run:end] = _nop(end - run)
    return bytes(result)


def relocate(code: bytes, place: int, source: int, size: int) -> bytes | None:
    """text_poke_apply_relocation() without the NOPs: `code`, the first `size` bytes of which come from address
    `source`, as it is written at address `place`. None where the kernel would stop (BUG)."""
    result = bytearray(code)
    move = source - place
    for instruction in split(code):
        fields = [field for field in (instruction.branch, instruction.memory) if field]
        for at, width in fields:
            where = slice(instruction.offset + at, instruction.offset + at + width)
            value = int.from_bytes(code[where], "little", signed=True)
            if not 0 <= instruction.end + value <= size:
                moved = value + move
                if not -(1 << (8 * width - 1)) <= moved < 1 << (8 * width - 1):
                    return None
                result[where] = moved.to_bytes(width, "little", signed=True)
        if instruction.opcode == JMP32 and instruction.branch is not None:
            at = instruction.offset + instruction.branch[0]
            short = int.from_bytes(code[at : at + 4], "little", signed=True) + move + 3
            if -128 <= short < 128:
                piece = bytes([JMP8]) + short.to_bytes(1, "little", signed=True)
                result[instruction.offset : instruction.end] = piece.ljust(instruction.length, b"\xcc")
    return bytes(result)
