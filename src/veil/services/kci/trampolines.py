# SPDX-License-Identifier: GPL-2.0-or-later
"""Explain the trampolines that Linux makes at run time for each user of the function tracer.

create_trampoline() (arch/x86/kernel/ftrace.c) copies ftrace_caller or ftrace_regs_caller, ends the copy with a return,
puts the address of the user's ftrace_ops behind it, loads that, and calls the user's function directly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from veil.services.kci.boot_sites import return_content
from veil.services.kci.code_rules import Configuration
from veil.services.kci.errors import KciError
from veil.services.kci.instructions import CALL, NOPS, RET, join_nops, relocate
from veil.services.kci.kallsyms import Symbols
from veil.services.kci.surroundings import ReadMemory, Surroundings
from veil.services.kci.windows import branch_targets, member

__all__ = ["Trampoline", "TrampolineRefused", "explain_trampoline"]

_LOAD_OPS = bytes.fromhex("488b15")  # movq disp32(%rip), %rdx
_TEMPLATES = (
    ("ftrace_caller", "ftrace_caller_end", "ftrace_caller_op_ptr", "ftrace_call", None),
    ("ftrace_regs_caller", "ftrace_regs_caller_end", "ftrace_regs_caller_op_ptr", "ftrace_regs_call",
     "ftrace_regs_caller_jmp"),
)  # fmt: skip
_MAX_SIZE = 4096


class TrampolineRefused(KciError):
    """Code that is no ftrace trampoline."""


@dataclass(frozen=True)
class Trampoline:
    """A trampoline that is as Linux makes it."""

    address: int
    length: int
    calls: int
    """The function that it calls."""
    operations: int
    """The ftrace_ops of its user: a pointer to data, which the trampoline hands on."""


def explain_trampoline(
    symbols: Symbols, near: Surroundings, configuration: Configuration, address: int, code: bytes, read: ReadMemory
) -> Trampoline:
    """The trampoline at the start of `code`, which lies at `address`. Raises TrampolineRefused with the reason.

    `read` reads the kernel's text, explained before. The rest of the page must be what executable memory is filled
    with: INT3, or zeros where it was cleared for the trampoline.
    """
    reasons = []
    for template in _TEMPLATES:
        try:
            return _explain(template, symbols, near, configuration, address, code, read)
        except TrampolineRefused as error:
            reasons.append(str(error))
    raise TrampolineRefused(f"{address:#x} is no ftrace trampoline: " + "; ".join(reasons))


def _explain(
    template: tuple[str, str, str, str, str | None],
    symbols: Symbols,
    near: Surroundings,
    configuration: Configuration,
    address: int,
    code: bytes,
    read: ReadMemory,
) -> Trampoline:
    name, *labels = template
    start = symbols.get(name)
    end, load, call = (symbols.get(label) for label in labels[:3] if label)
    jump = symbols.get(labels[3]) if labels[3] else None
    if (
        start is None
        or end is None
        or load is None
        or call is None
        or not start < load < call < end < start + _MAX_SIZE
    ):
        raise TrampolineRefused(f"this kernel has no {name}")
    size = end - start
    body = bytearray(read(start, size))
    if jump is not None:
        body[jump - start : jump - start + 2] = NOPS[2]
    moved = relocate(bytes(body), address, start, size)
    if moved is None:
        raise TrampolineRefused(f"{name} cannot be moved there")
    expected = bytearray(join_nops(moved))
    tail, expected_return = _returns(near, configuration, address + size)
    pointer = size + tail
    at = load - start
    expected[at : at + 7] = _LOAD_OPS + (pointer - at - 7).to_bytes(4, "little")
    at = call - start
    expected[at : at + 5] = code[at : at + 5]
    if code[:size] != expected:
        raise TrampolineRefused(f"it differs from {name} at byte {_first_difference(code, bytes(expected))}")
    if not code[size:].startswith(expected_return):
        raise TrampolineRefused(f"it does not end like {name}")
    target = np.array([address + at], np.uint64)
    leads = branch_targets(target, np.frombuffer(code[at : at + 5], np.uint8)[None])
    calls = int(leads[0])
    if code[at] != CALL or not (member(leads, near.targets) | member(leads, near.dispatch_targets)).all():
        raise TrampolineRefused(f"it calls {calls:#x}, which is no function that may be called")
    filling = set(code[pointer + 8 :]) | set(code[size + len(expected_return) : pointer])
    if filling - {0x00, 0xCC}:
        raise TrampolineRefused("other bytes lie behind it")
    operations = int.from_bytes(code[pointer : pointer + 8], "little")
    if operations < 1 << 63:
        raise TrampolineRefused(f"it hands on {operations:#x}, which is no address of the kernel's")
    return Trampoline(address, pointer + 8, calls, operations)


def _returns(near: Surroundings, configuration: Configuration, address: int) -> tuple[int, bytes]:
    """(RET_SIZE, the bytes that are written of it)."""
    size = 5 if near.indirect_thunks is not None else 2
    jump = return_content(np.array([address], np.uint64), configuration.returns, near).tobytes()
    return size, jump[:2] if jump[0] == RET else jump


def _first_difference(some: bytes, others: bytes) -> int:
    return next((at for at, pair in enumerate(zip(some, others, strict=False)) if pair[0] != pair[1]), len(some))
