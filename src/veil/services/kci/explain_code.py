# SPDX-License-Identifier: GPL-2.0-or-later
"""Explain every byte of a piece of kernel code that runs, from the bytes that were measured and the tables beside them.

What Linux does to its code at boot is done again here, in the same order, on a copy; then the copy is compared with
memory. How it is done (the CPU's features, the kind of returns, ...) is inferred from memory, once for all sites, so
that a site whose content would be legal in another kernel's configuration is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.alternatives import Shape, build_shapes, find_cases, settle
from veil.services.kci.boot_sites import (
    RETPOLINE_FORMS,
    compiled_returns,
    elect,
    elect_seal,
    retpoline_content,
    retpoline_lengths,
    return_content,
    return_forms,
    seal_content,
)
from veil.services.kci.byte_rows import Bytes, Places, cut, distinct, member, put, rows, same
from veil.services.kci.errors import KciError, TableError
from veil.services.kci.kernel_image import AddressRange
from veil.services.kci.live_sites import KINDS, LiveSites
from veil.services.kci.patch_tables import PatchTables
from veil.services.kci.surroundings import ReadMemory, Surroundings

__all__ = ["CodeRules", "Configuration", "Explanation", "Unexplained"]

_LOCK, _NO_LOCK = 0xF0, 0x3E  # the lock prefix, and the one that Linux puts in its place where there is one CPU
_MAX_REPORTED = 256
_CONSTANT_SIZES = {"ptr": 8, "shift": 1, "mask": 4}


@dataclass(frozen=True)
class Configuration:
    """How this kernel patched itself at boot."""

    returns: str
    retpolines: str
    seals: str
    uniprocessor: bool
    """Lock prefixes were taken out."""
    features: Mapping[int, bool] = field(repr=False)
    """The CPU's features and bugs by their numbers in the kernel, as far as a patch site tells of them."""


@dataclass(frozen=True)
class Unexplained:
    """A byte that no rule explains."""

    address: int
    found: int
    expected: int


@dataclass(frozen=True)
class Explanation:
    """What was found. Code is sound if `unexplained` is empty; of many bytes the first ones stand there."""

    configuration: Configuration
    sites: Mapping[str, int]
    """Sites by kind that hold something else than was measured."""
    changed: int
    """Bytes that are not as measured."""
    unexplained: tuple[Unexplained, ...]
    unexplained_bytes: int

    @property
    def sound(self) -> bool:
        """Whether every byte is explained."""
        return not self.unexplained


class CodeRules:
    """The rules for one piece of code: the kernel's text, or one of a module's.

    `pristine` are its bytes, relocated, before any patch, at virtual address `base`; `replacement` reads the code that
    alternatives put in (and only that); `trampolines` are the static call trampolines (symbols __SCT__*) in the code.
    Sites of the tables outside of the code are left alone: they lie in init sections, which have rules of their own or
    are no code any more. Raises TableError for tables that no sound image has: two kinds of sites that overlap, sites
    without what they must hold. The work is bounded by the size of the tables.
    """

    def __init__(
        self,
        base: int,
        pristine: bytes,
        tables: PatchTables,
        replacement: ReadMemory,
        near: Surroundings,
        trampolines: Iterable[int] = (),
    ) -> None:
        self.range = AddressRange(base, base + len(pristine))
        self._pristine: Bytes = np.frombuffer(pristine, np.uint8)
        self._replacement = replacement
        self.near = near
        """What the rules know of the kernel around (`admit`)."""
        self._trampolines = [at for at in trampolines if at in self.range]
        self._retpolines = self._inside(tables.retpolines)
        self._seals = self._places(tables.endbr_seals)
        self._locks = self._places(tables.smp_locks)
        self._constants = [
            (constant, self._places(constant.sites), _CONSTANT_SIZES.get(constant.kind))
            for constant in tables.constants
        ]
        self._find_returns(tables)
        alternatives = tables.alternatives
        start, end = np.uint64(self.range.start), np.uint64(self.range.end)
        self._alternatives = alternatives[(alternatives["site"] >= start) & (alternatives["site"] < end)]
        self.live = LiveSites(base, self._pristine, tables, self._trampolines, near)
        self._shapes = build_shapes(self._alternatives, self._read_pristine, replacement)
        self._pointers = set[int]().union(*(shape.pointers for shape in self._shapes))
        self._patched = np.concatenate([np.empty(0, np.uint64), *(shape.sites for shape in self._shapes)])
        self._patched_lengths = np.repeat(
            np.array([shape.length for shape in self._shapes], np.int64), [len(shape.sites) for shape in self._shapes]
        )
        self._claim()
        self._find_dependent()

    @cached_property
    def variables(self) -> tuple[int, ...]:
        """Addresses of the kernel's variables that `explain` reads, in order: 8 bytes each, at most."""
        constants = {constant.address for constant, _, _ in self._constants if constant.address is not None}
        return tuple(sorted(self._pointers | constants))

    def admit(self, near: Surroundings) -> None:
        """From now on other code is around: calls may lead to what it lists."""
        self.near = near

    def has_lock_prefix(self, address: int) -> bool:
        """Whether a lock prefix may stand at an address of the code, or be taken out there."""
        return bool(np.any(self._locks == address - self.range.start))

    def _inside(self, sites: NDArray[np.uint64]) -> NDArray[np.uint64]:
        start, end = np.uint64(self.range.start), np.uint64(self.range.end)
        return distinct(sites[(sites >= start) & (sites < end)])

    def _places(self, sites: NDArray[np.uint64]) -> Places:
        return (self._inside(sites) - np.uint64(self.range.start)).astype(np.int64)

    def _read_pristine(self, address: int, length: int) -> bytes:
        at = address - self.range.start
        if at < 0 or at + length > len(self._pristine):
            raise TableError(f".altinstructions has a site that leaves its code at {address:#x}")
        return self._pristine[at : at + length].tobytes()

    def _find_returns(self, tables: PatchTables) -> None:
        returns = self._inside(tables.returns)
        content = cut(self._pristine, (returns - np.uint64(self.range.start)).astype(np.int64), 5)
        self._returns = returns[compiled_returns(returns, content, self.near)]
        # A trampoline's return is a static call that has no function yet (__static_call_fixup).
        self._returns = self._returns[~member(self._returns, np.array(sorted(self._trampolines), np.uint64))]
        # Returns in the code of alternatives are patched before that is put in.
        elsewhere = tables.returns
        elsewhere = elsewhere[(elsewhere < np.uint64(self.range.start)) | (elsewhere >= np.uint64(self.range.end))]
        self._moved_returns = np.sort(elsewhere)

    def _claim(self) -> None:
        """Refuse overlapping sites, the effect of which would depend on more than the rules know."""
        owner = np.zeros(len(self._pristine) + 8, np.uint8)
        base = np.uint64(self.range.start)
        inner = (self._returns - base).astype(np.int64)
        spans = [
            ((self._patched - base).astype(np.int64), self._patched_lengths),
            ((self._retpolines - base).astype(np.int64), None),
            (self._seals, np.full(len(self._seals), 4)),
            (self.live.offsets, self.live.lengths),
            *((places, np.full(len(places), size or 0)) for _, places, size in self._constants),
        ]  # fmt: skip
        for number, (places, lengths) in enumerate(spans):
            if lengths is None:
                lengths = retpoline_lengths(cut(self._pristine, places, 6))
            if len(places) and int((places + lengths).max()) > len(self._pristine):
                raise TableError(f"a patch site leaves its code at {self.range.end:#x}")
            ordered = np.sort(places)
            twice = ordered[:-1][ordered[1:] == ordered[:-1]]
            for column in range(int(lengths.max(initial=0))):
                at = places[lengths > column] + column
                twice = np.append(twice, at[owner[at] != 0])
                if len(twice):
                    raise TableError(f"two patch sites overlap near {self.range.start + int(twice[0]):#x}")
                owner[at] = number + 1
        # Returns may lie in a site of alternatives (owner 1) as a whole, and in no other.
        if len(inner):
            if int(inner.max()) + 5 > len(self._pristine):
                raise TableError(f"a return leaves its code at {self.range.end:#x}")
            covered = owner[inner[:, None] + np.arange(5)]
            wrong = np.flatnonzero(~((covered == 0).all(axis=1) | (covered == 1).all(axis=1)))
            if len(wrong):
                raise TableError(f"two patch sites overlap at {int(self._returns[wrong[0]]):#x}")
        self._free_returns = self._returns[(owner[inner] == 0)] if len(inner) else self._returns

    def _find_dependent(self) -> None:
        """Sites whose outcomes hold returns, which are known only with the form of returns."""
        returns = np.sort(np.concatenate([self._returns, self._moved_returns]))
        entries = self._alternatives
        starts = np.concatenate([self._patched, entries["replacement"]])
        ends = starts + np.concatenate([self._patched_lengths, entries["size"]]).astype(np.uint64)
        holding = np.searchsorted(returns, starts) < np.searchsorted(returns, ends)
        dependent = distinct(np.concatenate([self._patched, entries["site"]])[holding])
        self._dependent = entries[member(entries["site"], dependent)]
        if len(dependent):
            others = (shape._replace(sites=shape.sites[~member(shape.sites, dependent)]) for shape in self._shapes)
            self._shapes = [shape for shape in others if len(shape.sites)]

    def explain(self, now: bytes, data: ReadMemory, configuration: Configuration | None = None) -> Explanation:
        """Explain the code as it is `now`; `data` reads the kernel's variables that its patches follow.

        With a `configuration`, that of the kernel, no other is accepted. Never raises for what it finds in `now`.
        """
        if len(now) != len(self._pristine):
            raise ValueError(f"{len(now)} bytes of code are to be explained, the rules are for {len(self._pristine)}")
        found: Bytes = np.frombuffer(now, np.uint8)
        code = self._pristine.copy()
        sites: Counter[str] = Counter()
        returns, retpolines = self._branches(code, found, configuration)
        features = self._apply_alternatives(code, found, data, returns, configuration, sites)
        seals = self._apply_seals(code, found, configuration)
        uniprocessor = self._apply_locks(code, found, configuration, sites)
        self._apply_constants(code, found, data)
        live = cut(found, self.live.offsets, 6)
        legal = self.live.legal(live, self.near, returns)
        put(code, self.live.offsets[legal], live[legal], self.live.lengths[legal])
        self._count(code, sites)
        wrong = np.flatnonzero(code != found)
        return Explanation(
            Configuration(returns, retpolines, seals, uniprocessor, features),
            dict(sites),
            int(np.count_nonzero(found != self._pristine)),
            tuple(
                Unexplained(self.range.start + int(at), int(found[at]), int(code[at])) for at in wrong[:_MAX_REPORTED]
            ),
            len(wrong),
        )

    def _branches(self, code: Bytes, found: Bytes, known: Configuration | None) -> tuple[str, str]:
        """Returns and retpolines."""
        base = np.uint64(self.range.start)
        if known is None:
            places = (self._free_returns - base).astype(np.int64)
            forms = ((form, return_content(self._free_returns, form, self.near)) for form in return_forms(self.near))
            returns = elect(forms, cut(found, places, 5))
        else:
            returns = known.returns
        places = (self._returns - base).astype(np.int64)
        put(code, places, return_content(self._returns, returns, self.near))
        places = (self._retpolines - base).astype(np.int64)
        before = cut(code, places, 6)
        lengths = retpoline_lengths(before)
        if known is None:
            forms = ((form, retpoline_content(self._retpolines, before, form, self.near)) for form in RETPOLINE_FORMS)
            retpolines = elect(forms, cut(found, places, 6), lengths)
        else:
            retpolines = known.retpolines
        put(code, places, retpoline_content(self._retpolines, before, retpolines, self.near), lengths)
        return returns, retpolines

    def _apply_alternatives(
        self,
        code: Bytes,
        found: Bytes,
        data: ReadMemory,
        returns: str,
        known: Configuration | None,
        sites: Counter[str],
    ) -> dict[int, bool]:
        read: dict[int, list[int]] = {}

        def targets(pointer: int) -> list[int]:
            if pointer not in read:
                read[pointer] = self._pointed(pointer, data)
            return read[pointer]

        cases = [
            case
            for shape in (*self._shapes, *self._dependent_shapes(code, returns))
            for case in find_cases(shape, self.range.start, code, found, targets, self.near)
        ]
        chosen, features = settle(cases, None if known is None else known.features)
        for case, number in zip(cases, chosen, strict=True):
            if number is None:
                continue
            content = case.contents[number]
            if len(case.places) == 1:
                at = int(case.places[0])
                code[at : at + content.shape[1]] = content[0]
            else:
                put(code, case.places, np.broadcast_to(content, (len(case.places), content.shape[1])))
        return features

    def _dependent_shapes(self, code: Bytes, returns: str) -> list[Shape]:
        start = self.range.start

        def original(address: int, length: int) -> bytes:
            return code[address - start : address - start + length].tobytes()

        def replacement(address: int, length: int) -> bytes:
            if address in self.range:
                return original(address, length)
            piece = bytearray(self._replacement(address, length))
            first = int(np.searchsorted(self._moved_returns, np.uint64(address)))
            for site in self._moved_returns[first:].tolist():
                if site >= address + length:
                    break
                place = np.array([site], np.uint64)
                at = site - address
                if (
                    len(piece) - at >= 5
                    and compiled_returns(
                        place, np.frombuffer(bytes(piece[at : at + 5]), np.uint8)[None], self.near
                    ).all()
                ):
                    piece[at : at + 5] = return_content(place, returns, self.near).tobytes()
            return bytes(piece)

        return build_shapes(self._dependent, original, replacement)

    def _pointed(self, address: int, data: ReadMemory) -> list[int]:
        """What the kernel may have found in a function pointer: a function, or nothing."""
        try:
            value = int.from_bytes(data(address, 8), "little")
        except KciError:
            return []
        known = bool(self.near.may_call(np.array([value], np.uint64))[0])
        return [value] if known or value in (0, self.near.nop_function, self.near.bug_function) else []

    def _apply_seals(self, code: Bytes, found: Bytes, known: Configuration | None) -> str:
        form = elect_seal(code, found, self._seals) if known is None else known.seals
        places, content = seal_content(code, self._seals, form)
        put(code, places, content)
        return form

    def _apply_locks(self, code: Bytes, found: Bytes, known: Configuration | None, sites: Counter[str]) -> bool:
        places = self._locks[code[self._locks] == _LOCK]
        if known is None:
            uniprocessor = bool(np.count_nonzero(found[places] == _NO_LOCK) * 2 > len(places))
        else:
            uniprocessor = known.uniprocessor
        if uniprocessor:
            code[places] = _NO_LOCK
        return uniprocessor

    def _apply_constants(self, code: Bytes, found: Bytes, data: ReadMemory) -> None:
        for constant, places, size in self._constants:
            if size is None or not len(places):
                continue
            try:
                if constant.address is None:
                    raise KciError(f"the kernel image has no symbol {constant.name}")
                value = data(constant.address, size)
            except KciError:
                # Its variable has no name or is gone: what stands at most sites counts, if it can be such a value.
                value = _commonest(cut(found, places, size))
            if _can_be_constant(value):
                put(code, places, rows(value, len(places)))

    def _count(self, code: Bytes, sites: Counter[str]) -> None:
        """Count the sites, by kind, that were explained and are not as measured."""
        base = np.uint64(self.range.start)
        alternatives, lengths = (self._patched - base).astype(np.int64), self._patched_lengths
        width = int(lengths.max(initial=0))
        fixed: list[tuple[str, Places, int, Places | None]] = [
            ("return", (self._returns - base).astype(np.int64), 5, None),
            ("retpoline", (self._retpolines - base).astype(np.int64), 5, None),
            ("alternative", alternatives, width, lengths),
            ("ENDBR", self._seals, 4, None),
            ("lock prefix", self._locks, 1, None),
            *(("constant", places, size or 0, None) for _, places, size in self._constants),
        ]
        for kind, places, size, lengths_ in fixed:
            if size and len(places):
                equal = same(cut(code, places, size), cut(self._pristine, places, size), lengths_)
                sites[kind] += int(np.count_nonzero(~equal))
        live = ~same(cut(code, self.live.offsets, 6), cut(self._pristine, self.live.offsets, 6), self.live.lengths)
        for number, kind in enumerate(KINDS):
            sites[kind] += int(np.count_nonzero(live & (self.live.kinds == number)))


def _commonest(content: Bytes) -> bytes:
    values: Counter[bytes] = Counter(row.tobytes() for row in content)
    return values.most_common(1)[0][0]


def _can_be_constant(value: bytes) -> bool:
    """A shift of a register, a mask of low bits, or a canonical address: worth little as code to somebody who jumps."""
    if len(value) == 1:
        return value[0] < 64
    if len(value) == 4:
        mask = int.from_bytes(value, "little")
        return mask & (mask + 1) == 0
    return value[6:] in (b"\0\0", b"\xff\xff")
