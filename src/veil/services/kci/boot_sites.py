# SPDX-License-Identifier: GPL-2.0-or-later
"""Sites that Linux patches once, each kind in one way for the whole kernel (arch/x86/kernel/alternative.c).

Which way is chosen for the CPU at boot. It is not taken from the CPU's features, which do not tell all of it: it is the
way in which most of the sites were patched, and the others must agree.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.byte_rows import Bytes, Places, branch_targets, branches, cut, distinct, rows, same
from veil.services.kci.instructions import CALL, INT3, JMP32, NOPS, RET, join_nops
from veil.services.kci.surroundings import ENDBR, Surroundings

__all__ = ["ENDBR_FORMS", "RETPOLINE_FORMS", "compiled_returns", "elect", "retpoline_content", "return_content"]

#: `ret; int3; ...`, where returns need no thunk.
PLAIN_RETURN = "ret"
#: The thunk whose users are only the returns in the lower half of a cache line (cpu_wants_rethunk_at).
_HALF_LINE_THUNK = "its_return_thunk"

#: gen_endbr_poison(): up to 6.14, and from 6.15 on.
ENDBR_FORMS = {"kept": ENDBR, "osp nopl (%rax)": bytes.fromhex("660f1f00"), "nopl -42(%rax)": bytes.fromhex("0f1f40d6")}

#: Calls of thunks, or in their place indirect branches: behind LFENCE, with NOPs behind, with CS prefixes in front.
RETPOLINE_FORMS = ("retpoline", "lfence", "indirect", "prefixed")


def elect(forms: Iterable[tuple[str, Bytes]], found: Bytes, lengths: Places | int | None = None) -> str:
    """The form that most rows of `found` have; the first one where there are no rows. Once one has the majority, the
    others are not made."""
    counts: dict[str, int] = {}
    for name, content in forms:
        counts[name] = int(np.count_nonzero(same(content, found, lengths)))
        if counts[name] * 2 > len(found):
            return name
    return max(counts, key=lambda name: counts[name])


def compiled_returns(sites: NDArray[np.uint64], content: Bytes, near: Surroundings) -> NDArray[np.bool_]:
    """Which sites hold what the compiler writes for a return: a jump to __x86_return_thunk."""
    if near.return_thunk is None:
        return np.zeros(len(sites), bool)
    jumps = (content[:, 0] == JMP32) & (branch_targets(sites, content) == np.uint64(near.return_thunk))
    return np.asarray(jumps)


def return_content(sites: NDArray[np.uint64], form: str, near: Surroundings) -> Bytes:
    """What patch_return() writes at sites of five bytes; `form` is PLAIN_RETURN or a thunk's name."""
    plain = rows(bytes([RET]) + bytes([INT3]) * 4, len(sites))
    thunk = dict(near.return_thunks).get(form)
    if thunk is None:
        return plain
    jumps = branches(JMP32, sites, thunk)
    if form == _HALF_LINE_THUNK:
        upper = (sites & np.uint64(0x20)) != 0
        jumps[upper] = plain[upper]
    return jumps


def return_forms(near: Surroundings) -> list[str]:
    """All forms of returns that this kernel has."""
    return [PLAIN_RETURN, *(name for name, _ in near.return_thunks)]


def retpoline_lengths(content: Bytes) -> Places:
    """The lengths of calls and jumps to thunks: with a CS prefix, and conditional ones, have six bytes."""
    return np.where((content[:, 0] == 0x2E) | (content[:, 0] == 0x0F), 6, 5).astype(np.int64)


def retpoline_content(sites: NDArray[np.uint64], content: Bytes, form: str, near: Surroundings) -> Bytes:
    """What patch_retpoline() writes at sites that hold `content` (six bytes a row, of which the length counts)."""
    result = content.copy()
    if form == "retpoline" or near.indirect_thunks is None or not near.indirect_thunk_size:
        return result
    prefixed = (content[:, 0] == 0x2E) | (content[:, 0] == 0x0F)
    targets = np.where(prefixed, branch_targets(sites, content, 2), branch_targets(sites, content, 1))
    distance = targets - np.uint64(near.indirect_thunks)
    register = distance // np.uint64(near.indirect_thunk_size)
    sound = (register < np.uint64(16)) & (distance % np.uint64(near.indirect_thunk_size) == np.uint64(0))
    lengths = retpoline_lengths(content)
    first = np.where(prefixed, content[:, 1], content[:, 0])
    conditional = content[:, 0] == 0x0F
    # There are few shapes: one number says opcode, whether it is conditional, register and length.
    shapes = (
        first.astype(np.int64) << 24 | conditional.astype(np.int64) << 16 | register.astype(np.int64) << 8 | lengths
    )
    kinds = distinct(shapes[sound].astype(np.uint64))
    which = np.searchsorted(kinds, shapes[sound].astype(np.uint64))
    code = [_indirect(kind, form) for kind in kinds.tolist()]
    chosen = np.flatnonzero(sound)
    for number, piece in enumerate(code):
        if piece is not None:
            result[chosen[which == number], : len(piece)] = np.frombuffer(piece, np.uint8)
    return result


def _indirect(shape: int, form: str) -> bytes | None:
    """The call or jump through a register itself; None where it is too long for its place, and the thunk stays."""
    opcode, conditional, register, length = shape.to_bytes(4)
    code = b""
    jump = opcode != CALL
    if conditional:
        code += bytes([0x70 | (opcode & 0xF) ^ 1, length - 2])
    if form == "lfence":
        code += b"\x0f\xae\xe8"
    code += b"\x41" * (register >= 8) + bytes([0xFF, (0xE0 if jump else 0xD0) + register % 8])
    if form == "prefixed":
        # From 6.19 on there is one instruction, or one and INT3s.
        return code.ljust(length, bytes([INT3])) if jump else code.rjust(length, b"\x2e")
    if jump and len(code) < length:
        code += bytes([INT3])
    code = code.ljust(length, NOPS[1])
    return join_nops(code) if len(code) == length else None


def seal_content(code: Bytes, offsets: Places, form: str) -> tuple[Places, Bytes]:
    """Of the listed functions those that start with ENDBR64, and what stands there instead."""
    marked = same(cut(code, offsets, len(ENDBR)), rows(ENDBR, len(offsets)))
    return offsets[marked], rows(ENDBR_FORMS[form], int(np.count_nonzero(marked)))


def elect_seal(code: Bytes, now: Bytes, offsets: Places) -> str:
    """How most of the listed functions are sealed."""
    marked, _ = seal_content(code, offsets, "kept")
    forms = ((name, rows(form, len(marked))) for name, form in ENDBR_FORMS.items())
    return elect(forms, cut(now, marked, len(ENDBR)))
