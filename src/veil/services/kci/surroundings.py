# SPDX-License-Identifier: GPL-2.0-or-later
"""Where patched code may lead: the places of the kernel that its patching names, and the functions that it may call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.byte_rows import distinct, member
from veil.services.kci.kernel_image import AddressRange, KernelImage
from veil.services.kci.patch_tables import PatchTables

__all__ = ["ENDBR", "ReadMemory", "Surroundings", "addressed", "entries", "kernel_surroundings"]

#: Reads bytes at a virtual address; raises KciError where there is nothing to be read.
ReadMemory: TypeAlias = Callable[[int, int], bytes]

ENDBR = bytes.fromhex("f30f1efa")

# arch/x86/kernel/static_call.c: from 6.19 on `ud1 (%edx), %rdi`, and in 7.x `ds ds movb $0, (%rdi)`.
_INLINE_CALLS = (
    ("WARN_trap", bytes.fromhex("67480fb93a")),
    ("queued_spin_unlock", bytes.fromhex("3e3ec60700")),
)


@dataclass(frozen=True)
class Surroundings:
    """What rules for the kernel's and for modules' code need to know of the kernel."""

    return_thunk: int | None
    """__x86_return_thunk, to which the compiler's returns jump before they are patched."""
    return_thunks: tuple[tuple[str, int], ...]
    """Those that may take its place."""
    indirect_thunks: int | None
    """__x86_indirect_thunk_array."""
    indirect_thunk_size: int
    nop_function: int | None
    bug_function: int | None
    entry_call: int | None
    """__fentry__, which functions call before they are patched."""
    entry_targets: NDArray[np.uint64]
    """What a traced function may call instead: ftrace_caller, ftrace_regs_caller."""
    dispatchers: tuple[int, ...]
    """The calls inside of those, which Linux points at the tracer in use (ftrace_update_ftrace_func)."""
    dispatch_targets: NDArray[np.uint64]
    """Functions that those may call though nothing points at them: the one that goes through a list of tracers."""
    functions: NDArray[np.uint64]
    """Functions of the kernel's that may be called through a pointer, or whose address stands in the image, in order;
    static calls may lead there."""
    marked: bool
    """The compiler prepared for IBT: such functions begin with ENDBR64."""
    inline_calls: tuple[tuple[tuple[int, ...], bytes], ...] = ()
    """Static calls in place of which Linux writes what the function does: their keys and trampolines, and that."""
    added: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Those of modules that were verified. There are few of them, and they change; the kernel's are many."""

    @property
    def targets(self) -> NDArray[np.uint64]:
        """All of these functions."""
        return distinct(np.concatenate([self.functions, self.added]))

    def may_call(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these addresses are such functions'."""
        return member(addresses, self.functions) | member(addresses, self.added)

    def admit(self, *, targets: Iterable[int]) -> Surroundings:
        """The same with more functions: those of a module that was verified."""
        return self._with(self.functions, distinct(np.concatenate([self.added, np.array(list(targets), np.uint64)])))

    def equals(self, other: Surroundings) -> bool:
        """Whether both say the same, of the same kernel."""
        return self is other or all(
            ours is theirs or (isinstance(ours, np.ndarray) and np.array_equal(ours, theirs))
            for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
        )

    def retire(self, gone: AddressRange) -> Surroundings:
        """The same without what lies in a piece of code that is no longer executable."""
        functions, added = _without(self.functions, gone), _without(self.added, gone)
        return self if functions is self.functions and added is self.added else self._with(functions, added)

    def _with(self, functions: NDArray[np.uint64], added: NDArray[np.uint64]) -> Surroundings:
        # For each module that comes or goes: `replace` sets all the other fields again, one by one.
        made = object.__new__(Surroundings)
        vars(made).update(vars(self), functions=functions, added=added)
        return made


def kernel_surroundings(image: KernelImage, text: AddressRange, tables: PatchTables) -> Surroundings:
    """Read them from the kernel's symbols."""
    symbols = image.symbols
    thunks = {
        name: at for name, at in symbols.named(suffix="_return_thunk").items() if at in text and not _padding(name)
    }
    first, second = symbols.get("__x86_indirect_thunk_rax"), symbols.get("__x86_indirect_thunk_rcx")
    functions = symbols.functions()
    functions = functions[(functions >= np.uint64(text.start)) & (functions < np.uint64(text.end))]
    marked = len(tables.endbr_seals) > 0
    code = image.read(text.start, text.size)
    callers = [at for name in ("ftrace_caller", "ftrace_regs_caller") if (at := symbols.get(name)) is not None]
    calls = [at for name in ("ftrace_call", "ftrace_regs_call") if (at := symbols.get(name)) is not None]
    # An alias that the linker script makes of the other, so that no compiler sees its address taken.
    names = ("arch_ftrace_ops_list_func", "ftrace_ops_list_func")
    lists = {at for name in names if (at := symbols.get(name)) is not None and at in text}
    return Surroundings(
        return_thunk=symbols.get("__x86_return_thunk"),
        return_thunks=tuple(thunks.items()),
        indirect_thunks=symbols.get("__x86_indirect_thunk_array"),
        indirect_thunk_size=max(0, second - first) if first is not None and second is not None else 0,
        nop_function=symbols.get("nop_func"),
        bug_function=symbols.get("BUG_func"),
        entry_call=symbols.get("__fentry__"),
        entry_targets=np.array(sorted(callers), np.uint64),
        dispatchers=tuple(calls),
        dispatch_targets=np.array(sorted(lists), np.uint64),
        functions=distinct(
            np.concatenate(
                [
                    entries(code, text.start, functions, tables.endbr_seals, marked=marked),
                    addressed(functions, [segment.data for segment in image.segments]),
                ]
            )
        ),
        marked=marked,
        inline_calls=tuple(
            (tuple(at for prefix in ("__SCK__", "__SCT__") if (at := symbols.get(prefix + name)) is not None), content)
            for name, content in _INLINE_CALLS
        ),
    )


def entries(
    code: bytes, base: int, functions: NDArray[np.uint64], seals: NDArray[np.uint64], *, marked: bool
) -> NDArray[np.uint64]:
    """Those of `functions` that may be called through a pointer.

    A compiler that prepares for IBT starts each with ENDBR64, and objtool lists those whose address nobody takes, which
    are sealed. Other code (no CONFIG_X86_KERNEL_IBT) does not say: then all functions count.
    """
    functions = distinct(functions)
    if not marked:
        return functions
    raw = np.frombuffer(code, np.uint8)
    offsets = (functions - np.uint64(base)).astype(np.int64)
    fits = offsets + len(ENDBR) <= len(raw)
    functions, offsets = functions[fits], offsets[fits]
    prepared = (raw[offsets[:, None] + np.arange(len(ENDBR))] == np.frombuffer(ENDBR, np.uint8)).all(axis=1)
    found = functions[prepared]
    return np.asarray(found[~member(found, np.sort(seals))])


def addressed(functions: NDArray[np.uint64], pieces: Iterable[bytes]) -> NDArray[np.uint64]:
    """Those of `functions` whose address stands somewhere in `pieces`, be it in an instruction or in a pointer.

    Static calls go to functions without ENDBR64 too: they are written in assembler, or nothing but static calls points
    at them. A few too many are found, for other bytes can look like an address.
    """
    functions = distinct(functions)
    if not len(functions):
        return functions
    # The upper half of a kernel address is all ones: instructions and pointers alike hold the lower 32 bits.
    lower = functions.astype(np.uint32)
    first, last = int(lower.min()), int(lower.max())
    seen = np.zeros(last - first + 1, bool)
    for piece in pieces:
        if len(piece) < 4:
            continue
        raw = np.frombuffer(piece, np.uint8)
        words = np.ndarray((len(raw) - 3,), np.dtype("<u4"), raw, strides=(1,))  # one at each byte
        for high in range(first >> 24, (last >> 24) + 1):
            places = words[np.flatnonzero(raw[3:] == high)] - np.uint32(first)
            seen[places[places < len(seen)]] = True
    return np.asarray(functions[seen[lower - np.uint32(first)]])


def _padding(name: str) -> bool:
    return name.startswith(("__pfx_", "__cfi_"))


def _without(some: NDArray[np.uint64], gone: AddressRange) -> NDArray[np.uint64]:
    if not len(some) or gone.end <= int(some[0]) or gone.start > int(some[-1]):
        return some
    first, last = some.searchsorted(np.array([gone.start, gone.end], np.uint64)).tolist()
    return np.concatenate([some[:first], some[last:]]) if first < last else some
