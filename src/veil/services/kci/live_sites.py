# SPDX-License-Identifier: GPL-2.0-or-later
"""Sites that Linux patches again and again: jump labels, static calls, calls of the function tracer.

A site's legal contents: arch/x86/kernel/jump_label.c, static_call.c, ftrace.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.boot_sites import return_content
from veil.services.kci.byte_rows import Bytes, Places, branch_targets, branches, cut, member, rows, same
from veil.services.kci.errors import TableError
from veil.services.kci.instructions import CALL, JMP8, JMP32, NOPS, RET
from veil.services.kci.patch_tables import PatchTables
from veil.services.kci.surroundings import Surroundings

__all__ = ["KINDS", "LiveSites", "Site"]

JUMP_LABEL, STATIC_CALL, STATIC_TAIL_CALL, TRAMPOLINE, FUNCTION_ENTRY, TRACE_DISPATCH = range(6)
KINDS = ("jump label", "static call", "static tail call", "static call trampoline", "function entry", "trace dispatch")

_WIDTH = 6
_RETURN_ZERO = bytes.fromhex("2e2e2e31c0")  # cs cs cs xorl %eax, %eax
_TRAMPOLINE_END = bytes.fromhex("0fb9cc")  # ud1 %esp, %ecx


class Site(NamedTuple):
    """One place that is patched at run time."""

    address: int
    length: int
    kind: str


class LiveSites:
    """All such places of a piece of code at `base`, whose bytes before any patch are `code`.

    `trampolines` are the __SCT__ symbols in it. Raises TableError for a site that does not hold what it must.
    """

    def __init__(
        self, base: int, code: Bytes, tables: PatchTables, trampolines: Iterable[int], near: Surroundings
    ) -> None:
        self.base = base
        end = base + len(code)
        jumps = tables.jumps[(tables.jumps["site"] >= np.uint64(base)) & (tables.jumps["site"] < np.uint64(end))]
        calls = tables.static_calls
        calls = calls[(calls["site"] >= np.uint64(base)) & (calls["site"] < np.uint64(end))]
        functions = tables.functions[(tables.functions >= np.uint64(base)) & (tables.functions < np.uint64(end))]
        dispatchers = [at for at in near.dispatchers if base <= at < end]
        groups = [
            (JUMP_LABEL, jumps["site"], jumps["target"]),
            (STATIC_CALL, calls["site"][~calls["tail"]], calls["key"][~calls["tail"]]),
            (STATIC_TAIL_CALL, calls["site"][calls["tail"]], None),
            (TRAMPOLINE, np.array(sorted(trampolines), np.uint64), None),
            (FUNCTION_ENTRY, functions, None),
            (TRACE_DISPATCH, np.array(dispatchers, np.uint64), None),
        ]
        addresses = np.concatenate([sites for _, sites, _ in groups])
        kinds = np.concatenate([np.full(len(sites), kind, np.uint8) for kind, sites, _ in groups])
        targets = np.concatenate(
            [np.zeros(len(sites), np.uint64) if leads is None else leads for _, sites, leads in groups]
        )
        order = np.lexsort((kinds, addresses))
        #: a jump label's target, a static call's key
        self.addresses, self.kinds, self._targets = addresses[order], kinds[order], targets[order]
        self.offsets: Places = (self.addresses - np.uint64(base)).astype(np.int64)
        self._pristine = cut(code, self.offsets, _WIDTH)
        self.lengths: Places = np.full(len(order), 5, np.int64)
        self._inline = np.zeros((len(order), 5), np.uint8)
        for keys, content in near.inline_calls:
            chosen = (self.kinds == STATIC_CALL) & member(self._targets, np.array(sorted(keys), np.uint64))
            self._inline[chosen] = np.frombuffer(content, np.uint8)
        self._measure(code)

    def _measure(self, code: Bytes) -> None:
        first, jump = self._pristine[:, 0], self.kinds == JUMP_LABEL
        tail = self.kinds == STATIC_TAIL_CALL
        self.lengths[tail & (first == 0x0F)] = 6  # jcc
        short = same(self._pristine[:, :2], rows(NOPS[2], len(first))) | (first == JMP8)
        self.lengths[jump & short] = 2
        self._nops = np.where((self.lengths == 2)[:, None], rows(NOPS[2], len(first), 5), rows(NOPS[5], len(first)))
        self._jumps = branches(JMP32, self.addresses, self._targets)
        near8 = self._targets - self.addresses - np.uint64(2)
        chosen = jump & short
        self._jumps[chosen, 0] = JMP8
        self._jumps[chosen, 1] = near8[chosen].astype(np.uint8)
        reached = (near8 + np.uint64(128)) < np.uint64(256)
        unsound = jump & (
            ~(
                same(self._pristine[:, :5], self._nops, self.lengths)
                | same(self._pristine[:, :5], self._jumps, self.lengths)
            )
            | (short & ~reached)
            | (self._targets < np.uint64(self.base))
            | (self._targets >= np.uint64(self.base + len(code)))
        )
        unsound |= self.offsets + self.lengths > len(code)
        trampoline = self.kinds == TRAMPOLINE
        ends = cut(code, self.offsets[trampoline] + 5, 3)
        unsound[np.flatnonzero(trampoline)[~same(ends, rows(_TRAMPOLINE_END, len(ends)))]] = True
        wrong = np.flatnonzero(unsound)
        if len(wrong):
            at = int(wrong[0])
            raise TableError(f"there is no {KINDS[self.kinds[at]]} at {self.addresses[at]:#x}, where a table has one")

    def __len__(self) -> int:
        return len(self.addresses)

    def site(self, number: int) -> Site:
        """By its place in the order of addresses."""
        return Site(int(self.addresses[number]), int(self.lengths[number]), KINDS[self.kinds[number]])

    def find(self, address: int) -> int | None:
        """The number of the site that covers an address."""
        number = int(np.searchsorted(self.addresses, np.uint64(address), "right")) - 1
        if number >= 0 and address < int(self.addresses[number]) + int(self.lengths[number]):
            return number
        return None

    def first_bytes(self, number: int) -> set[int]:
        """The bytes with which a content of a site may begin."""
        pristine = int(self._pristine[number, 0])
        match int(self.kinds[number]):
            case kind if kind == JUMP_LABEL:
                return {int(self._nops[number, 0]), int(self._jumps[number, 0])}
            case kind if kind in (STATIC_TAIL_CALL, TRAMPOLINE):
                return {pristine, JMP32, RET}
            case kind if kind == STATIC_CALL:
                return {pristine, CALL, NOPS[5][0], _RETURN_ZERO[0], int(self._inline[number, 0])}
            case _:
                return {pristine, CALL, NOPS[5][0]}

    def legal(
        self, content: Bytes, near: Surroundings, returns: str, chosen: Places | None = None
    ) -> NDArray[np.bool_]:
        """Which sites (of those `chosen` by number) have a legal content, six bytes a row of which the length counts.

        `returns` is the form of the kernel's returns.
        """
        numbers = np.arange(len(self)) if chosen is None else chosen
        sites, kinds, lengths = self.addresses[numbers], self.kinds[numbers], self.lengths[numbers]
        five, first = content[:, :5], content[:, 0]
        # What the compiler and the linker wrote is never wrong.
        sound = same(content, self._pristine[numbers], lengths)
        jump = kinds == JUMP_LABEL
        sound |= jump & (same(five, self._nops[numbers], lengths) | same(five, self._jumps[numbers], lengths))
        conditional = (first == 0x0F) & (content[:, 1] == self._pristine[numbers, 1]) & (lengths == 6)
        targets = np.where(conditional, branch_targets(sites, content, 2), branch_targets(sites, content, 1))
        callable_ = near.may_call(targets)
        nop5 = same(five, rows(NOPS[5], len(sites)))
        five_long = lengths == 5
        # Of sites without such a content the rows are zeros, which is no content of anything.
        inline = self._inline[numbers]
        special = same(five, rows(_RETURN_ZERO, len(sites))) | (same(five, inline) & inline.any(axis=1))
        sound |= (kinds == STATIC_CALL) & (((first == CALL) & callable_) | nop5 | special)
        returned = same(five, return_content(sites, returns, near))
        tail = (kinds == STATIC_TAIL_CALL) | (kinds == TRAMPOLINE)
        sound |= tail & five_long & (((first == JMP32) & callable_) | returned)
        sound |= tail & conditional & callable_
        traced = (first == CALL) & member(targets, near.entry_targets)
        sound |= (kinds == FUNCTION_ENTRY) & (nop5 | traced)
        dispatched = callable_ | member(targets, near.dispatch_targets)
        sound |= (kinds == TRACE_DISPATCH) & (first == CALL) & dispatched
        return sound
