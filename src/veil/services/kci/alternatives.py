# SPDX-License-Identifier: GPL-2.0-or-later
"""What a site of .altinstructions may hold after boot, and which features of the CPU each content tells of.

apply_alternatives() (arch/x86/kernel/alternative.c) goes through the table in order: an entry whose feature the CPU
has (or has not, with ALT_FLAG_NOT) overwrites its site, any other joins the site's NOPs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.byte_rows import Bytes, Places, branches, cut, rows
from veil.services.kci.errors import TableError
from veil.services.kci.instructions import CALL, NOPS, join_nops, relocate, split
from veil.services.kci.surroundings import Surroundings

__all__ = ["Case", "Outcome", "Shape", "build_shapes", "find_cases", "settle"]

_FLAG_NOT = 1
_FLAG_DIRECT_CALL = 2
_KNOWN_FLAGS = _FLAG_NOT | _FLAG_DIRECT_CALL
_INDIRECT_CALL = bytes([0xFF, 0x15])  # call *disp32(%rip)
_MAX_ENTRIES = 16

#: (feature, has the CPU it), each once
_Conditions: TypeAlias = tuple[tuple[int, bool], ...]


class Outcome(NamedTuple):
    """What a site holds if the CPU's features are as `conditions` say."""

    conditions: _Conditions
    content: bytes | None
    """None: its own code, or a call of what `pointer` points to."""
    pointer: int | None = None
    """ALT_FLAG_DIRECT_CALL: where the function pointer lies."""


class Shape(NamedTuple):
    """Sites with the same outcomes."""

    sites: NDArray[np.uint64]
    length: int
    outcomes: tuple[Outcome, ...]

    @property
    def pointers(self) -> set[int]:
        """Those of its outcomes."""
        return {outcome.pointer for outcome in self.outcomes if outcome.pointer is not None}


class Case(NamedTuple):
    """Sites with the same possible contents of which the same were found in memory."""

    places: Places
    """Their offsets in the code."""
    conditions: tuple[_Conditions, ...]
    contents: tuple[Bytes, ...]
    """For each of `conditions`: a row for each place, or one for all of them."""
    found: tuple[int, ...]
    """Which of them."""


def build_shapes(
    alternatives: NDArray[Any], original: Callable[[int, int], bytes], replacement: Callable[[int, int], bytes]
) -> list[Shape]:
    """All sites with their outcomes. `original` reads code as it is before alternatives are applied.

    Raises TableError for an entry that the kernel would not accept.
    """
    # Each site's entries in the table's order.
    entries = alternatives[np.argsort(alternatives["site"], kind="stable")].tolist()
    known: dict[tuple[Any, ...], tuple[int, tuple[Outcome, ...]]] = {}
    sites: dict[tuple[Any, ...], list[int]] = {}
    first = 0
    for end in range(1, len(entries) + 1):
        if end < len(entries) and entries[end][0] == entries[first][0]:
            continue
        site, some = entries[first][0], entries[first:end]
        if len(some) > _MAX_ENTRIES:
            raise TableError(f".altinstructions has {len(some)} entries for {site:#x}")
        # The kernel takes the longest for all of a site's entries: padding may stand in one of them only.
        length = max(entry[4] for entry in some)
        before = original(site, length)
        rules = tuple((entry[2], entry[3]) for entry in some)
        codes = tuple(replacement(entry[1], entry[5]) for entry in some)
        key = _key(site, before, rules, codes)
        if key not in known:
            known[key] = length, _outcomes(site, before, rules, codes, [entry[1] for entry in some])
        sites.setdefault(key, []).append(site)
        first = end
    return [Shape(np.array(found, np.uint64), *known[key]) for key, found in sites.items()]


def _key(site: int, before: bytes, rules: tuple[tuple[int, int], ...], codes: tuple[bytes, ...]) -> tuple[Any, ...]:
    """Equal for sites whose outcomes are the same."""
    if any(flags & _FLAG_DIRECT_CALL for _, flags in rules):
        # What it calls depends on the pointer alone, but for where the site is.
        direct = tuple(
            code[:1] + bytes([len(code)]) if flags & _FLAG_DIRECT_CALL else code
            for code, (_, flags) in zip(codes, rules, strict=True)
        )
        others = (code for code, (_, flags) in zip(codes, rules, strict=True) if not flags & _FLAG_DIRECT_CALL)
        if before[:2] == _INDIRECT_CALL and len(before) == 6 and not any(map(_is_relative, others)):
            return _pointer(site, before), rules, direct
    elif not any(map(_is_relative, codes)):
        return before, rules, codes
    return (site,)


def _pointer(site: int, call: bytes) -> int:
    return (site + 6 + int.from_bytes(call[2:6], "little", signed=True)) % (1 << 64)


@lru_cache(1 << 12)
def _is_relative(code: bytes) -> bool:
    """Does it mean something else at another place?"""
    return any(instruction.branch or instruction.memory for instruction in split(code))


def _outcomes(
    site: int, before: bytes, rules: tuple[tuple[int, int], ...], codes: Sequence[bytes], sources: Sequence[int]
) -> tuple[Outcome, ...]:
    length, outcomes = len(before), []
    direct = any(flags & _FLAG_DIRECT_CALL for _, flags in rules)
    for last in range(-1, len(rules)):
        conditions = _conditions(rules, last)
        if conditions is None:
            continue
        if last < 0:
            if direct:
                # A single instruction, in which there are no NOPs to be joined.
                outcomes.append(Outcome(conditions, None))
                continue
            content = before
        else:
            flags, size = rules[last][1], len(codes[last])
            if flags & ~_KNOWN_FLAGS:
                raise TableError(f".altinstructions has unknown flags {flags:#x} for {site:#x}")
            code = codes[last].ljust(length, b"\x90")
            if flags & _FLAG_DIRECT_CALL:
                if length != 6 or size != 5 or code[0] != CALL or before[:2] != _INDIRECT_CALL:
                    raise TableError(f".altinstructions has a direct call for {site:#x}, which calls no pointer")
                outcomes.append(Outcome(conditions, None, _pointer(site, before)))
                continue
            moved = relocate(code, site, sources[last], size)
            if moved is None:
                raise TableError(f".altinstructions has a replacement for {site:#x} that cannot be moved there")
            content = join_nops(moved)
        for _ in range(last + 1, len(rules)):
            content = join_nops(content)
        outcomes.append(Outcome(conditions, content))
    return tuple(outcomes)


@lru_cache(1 << 12)
def _conditions(rules: tuple[tuple[int, int], ...], last: int) -> _Conditions | None:
    """What makes `last` the last entry that is applied (-1: none is); None if nothing can."""
    known: dict[int, bool] = {}
    for number in range(max(last, 0), len(rules)):
        feature, flags = rules[number]
        has = (number == last) != bool(flags & _FLAG_NOT)
        if known.setdefault(feature, has) != has:
            return None
    return tuple(known.items())


def find_cases(
    shape: Shape, base: int, code: Bytes, now: Bytes, targets: Callable[[int], Iterable[int]], near: Surroundings
) -> list[Case]:
    """Which contents stand in memory: in `now`, the code at `base` that was `code` before alternatives were applied.
    `targets` are what a function pointer may point to."""
    places = (shape.sites - np.uint64(base)).astype(np.int64)
    conditions, contents = list[_Conditions](), list[Bytes]()
    for outcome in shape.outcomes:
        for content in _contents(shape, outcome, places, code, targets, near):
            conditions.append(outcome.conditions)
            contents.append(content)
    there = cut(now, places, shape.length)
    equal = [(there == content).all(axis=1) for content in contents]
    if len(places) == 1:
        found = tuple(number for number, same in enumerate(equal) if same[0])
        return [Case(places, tuple(conditions), tuple(contents), found)]
    bits = np.zeros(len(places), np.int64)
    for number, same in enumerate(equal):
        bits |= same.astype(np.int64) << number
    cases = []
    for value in sorted(set(bits.tolist())):
        chosen = bits == value
        found = tuple(number for number in range(len(equal)) if value >> number & 1)
        some = tuple(content if len(content) == 1 else content[chosen] for content in contents)
        cases.append(Case(places[chosen], tuple(conditions), some, found))
    return cases


def _contents(
    shape: Shape,
    outcome: Outcome,
    places: Places,
    code: Bytes,
    targets: Callable[[int], Iterable[int]],
    near: Surroundings,
) -> list[Bytes]:
    """What an outcome may be: several contents if a function pointer may point to several."""
    if outcome.content is not None:
        return [rows(outcome.content, 1)]
    if outcome.pointer is None:
        return [cut(code, places, shape.length)]
    contents = []
    for target in targets(outcome.pointer):
        called = target or near.bug_function or 0
        distance = (np.uint64(called) - shape.sites).view(np.int64) - 5
        if called == near.nop_function:
            contents.append(rows(NOPS[6], 1))
        elif bool(((distance >= -(1 << 31)) & (distance < 1 << 31)).all()):
            call = rows(NOPS[1] * 6, len(places))
            call[:, :5] = branches(CALL, shape.sites, called)
            contents.append(call)
    return contents


def settle(cases: Sequence[Case], known: Mapping[int, bool] | None = None) -> tuple[list[int | None], dict[int, bool]]:
    """One set of features that explains what was found: (which content each case must have, features).

    All sites must tell of one CPU: the features are what most of the sites say that have one explanation only, so that
    a site with a content that is legal for another CPU stands out. A case has None where no found content fits the
    features, nor any other. `known` is taken as it is.
    """
    features = dict(known or {})
    # What each of the cases leaves possible, and how many sites say so.
    possible: Counter[frozenset[_Conditions]] = Counter()
    for case in cases:
        possible[frozenset(case.conditions[number] for number in case.found)] += len(case.places)
    if known is None:
        votes: Counter[tuple[int, bool]] = Counter()
        for choices, count in possible.items():
            if len(choices) == 1:
                for condition in next(iter(choices)):
                    votes[condition] += count
        for (feature, has), count in votes.items():
            if count > votes[feature, not has] or (has and count == votes[feature, not has]):
                features[feature] = has
    # What is left open by some sites is decided by others, until nothing changes.
    changed = True
    while changed:
        changed = False
        for choices in possible:
            fitting = [set(conditions) for conditions in choices if _fits(conditions, features)]
            if fitting:
                for feature, has in set.intersection(*fitting):
                    if feature not in features:
                        features[feature], changed = has, True
    chosen: list[int | None] = []
    for case in cases:
        wanted = (*case.found, *range(len(case.conditions)))
        chosen.append(next((number for number in wanted if _fits(case.conditions[number], features)), None))
    return chosen, features


def _fits(conditions: _Conditions, features: Mapping[int, bool]) -> bool:
    return all(features.get(feature, has) == has for feature, has in conditions)
