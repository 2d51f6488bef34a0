# SPDX-License-Identifier: GPL-2.0-or-later
"""What a site of .altinstructions may hold after boot, and which features of the CPU each content tells of.

apply_alternatives() (arch/x86/kernel/alternative.c) goes through the table in order: an entry whose feature the CPU
has (or has not, with ALT_FLAG_NOT) overwrites its site, any other joins the site's NOPs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from veil.services.kci.errors import TableError
from veil.services.kci.instructions import CALL, NOPS, branch_to, join_nops, relocate
from veil.services.kci.surroundings import Surroundings

__all__ = ["Group", "Outcome", "build_groups", "direct_calls", "group_entries", "settle"]

_FLAG_NOT = 1
_FLAG_DIRECT_CALL = 2
_KNOWN_FLAGS = _FLAG_NOT | _FLAG_DIRECT_CALL
_INDIRECT_CALL = bytes([0xFF, 0x15])  # call *disp32(%rip)
_MAX_ENTRIES = 16


class Outcome(NamedTuple):
    """A content that a site has if the CPU's features are as `conditions` say."""

    conditions: tuple[tuple[int, bool], ...]
    content: bytes
    pointer: int | None = None
    """ALT_FLAG_DIRECT_CALL: where the function pointer lies. `content` means nothing before `direct_calls()`."""


@dataclass(frozen=True)
class Group:
    """The entries of one site."""

    site: int
    length: int
    outcomes: tuple[Outcome, ...]


def group_entries(alternatives: NDArray[Any]) -> dict[int, NDArray[Any]]:
    """Entries by site, each site's in the table's order."""
    if not len(alternatives):
        return {}
    order = np.argsort(alternatives["site"], kind="stable")
    ordered = alternatives[order]
    sites, starts = np.unique(ordered["site"], return_index=True)
    return dict(zip(sites.tolist(), np.split(ordered, starts[1:]), strict=True))


def build_groups(
    alternatives: NDArray[Any], original: Callable[[int, int], bytes], replacement: Callable[[int, int], bytes]
) -> list[Group]:
    """Groups with their outcomes. `original` reads code as it is before alternatives are applied.

    Raises TableError for an entry that the kernel would not accept.
    """
    return [
        _group(site, entries.tolist(), original, replacement) for site, entries in group_entries(alternatives).items()
    ]


def _group(
    site: int,
    entries: Sequence[tuple[int, int, int, int, int, int]],
    original: Callable[[int, int], bytes],
    replacement: Callable[[int, int], bytes],
) -> Group:
    if len(entries) > _MAX_ENTRIES:
        raise TableError(f".altinstructions has {len(entries)} entries for {site:#x}")
    # The kernel takes the longest for all of a site's entries: padding may stand in one of them only.
    length = max(entry[4] for entry in entries)
    before = original(site, length)
    outcomes = []
    for last in range(-1, len(entries)):
        conditions = _conditions(entries, last)
        if conditions is None:
            continue
        pointer = None
        if last < 0:
            content = before
        else:
            _, source, _, flags, _, size = entries[last]
            if flags & ~_KNOWN_FLAGS:
                raise TableError(f".altinstructions has unknown flags {flags:#x} for {site:#x}")
            code = replacement(source, size).ljust(length, b"\x90")
            if flags & _FLAG_DIRECT_CALL:
                if length != 6 or size != 5 or code[0] != CALL or before[:2] != _INDIRECT_CALL:
                    raise TableError(f".altinstructions has a direct call for {site:#x}, which calls no pointer")
                pointer = (site + 6 + int.from_bytes(before[2:6], "little", signed=True)) % (1 << 64)
                content = code
            else:
                moved = relocate(code, site, source, size)
                if moved is None:
                    raise TableError(f".altinstructions has a replacement for {site:#x} that cannot be moved there")
                content = join_nops(moved)
        for _ in range(last + 1, len(entries)):
            content = join_nops(content)
        outcomes.append(Outcome(conditions, content, pointer))
    return Group(site, length, tuple(outcomes))


def _conditions(entries: Sequence[tuple[int, ...]], last: int) -> tuple[tuple[int, bool], ...] | None:
    """What makes `last` the last entry that is applied (-1: none is); None if nothing can."""
    known: dict[int, bool] = {}
    for number in range(max(last, 0), len(entries)):
        feature, flags = entries[number][2], entries[number][3]
        has = (number == last) != bool(flags & _FLAG_NOT)
        if known.setdefault(feature, has) != has:
            return None
    return tuple(known.items())


def direct_calls(group: Group, pointers: Callable[[int], Iterable[int]], near: Surroundings) -> Group:
    """The group with the outcomes that its function pointers lead to."""
    outcomes = []
    for outcome in group.outcomes:
        if outcome.pointer is None:
            outcomes.append(outcome)
            continue
        for target in pointers(outcome.pointer):
            target = target or near.bug_function or 0
            if target == near.nop_function:
                outcomes.append(outcome._replace(content=NOPS[6]))
            elif (call := branch_to(CALL, group.site, target)) is not None:
                outcomes.append(outcome._replace(content=call + NOPS[1]))
    return Group(group.site, group.length, tuple(outcomes))


def settle(
    groups: Sequence[Group], matching: Sequence[Sequence[Outcome]], known: Mapping[int, bool] | None = None
) -> tuple[list[Outcome | None], dict[int, bool]]:
    """One set of features that explains what was found: (each group's outcome, features).

    `matching` are each group's outcomes that were found in memory. All sites must tell of one CPU: the features are
    what most of the sites say that have one explanation only, so that a site with a content that is legal for another
    CPU stands out. A group's outcome is None where no found one fits the features, nor any other. `known` is taken as
    it is.
    """
    features = dict(known or {})
    if known is None:
        votes = Counter(
            condition for found in matching if len({found.conditions for found in found}) == 1
            for condition in found[0].conditions
        )  # fmt: skip
        for (feature, has), count in votes.items():
            if count > votes[feature, not has] or (has and count == votes[feature, not has]):
                features[feature] = has
    # What is left open by some sites is decided by others, until nothing changes.
    changed = True
    while changed:
        changed = False
        for found in matching:
            fitting = [set(outcome.conditions) for outcome in found if _fits(outcome, features)]
            if fitting:
                for feature, has in set.intersection(*fitting):
                    if feature not in features:
                        features[feature], changed = has, True
    chosen: list[Outcome | None] = []
    for group, found in zip(groups, matching, strict=True):
        sound = [outcome for outcome in found if _fits(outcome, features)]
        chosen.append(next(iter(sound or [o for o in group.outcomes if _fits(o, features)]), None))
    return chosen, features


def _fits(outcome: Outcome, features: Mapping[int, bool]) -> bool:
    return all(features.get(feature, has) == has for feature, has in outcome.conditions)
