# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide on one store to verified code: is it a step by which Linux itself patches a site?

text_poke_bp_batch() (arch/x86/kernel/alternative.c) changes an instruction that other CPUs may execute in three steps:
INT3 over its first byte, the new bytes behind the first one, the first byte. A CPU that comes by meanwhile traps. So
what stands at a site is always whole and legal, or begins with INT3. Other stores are refused, and so is each step at
the wrong time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from veil.services.kci.errors import KciError
from veil.services.kci.explain_code import CodeRules, Configuration
from veil.services.kci.instructions import INT3
from veil.services.kci.surroundings import ReadMemory

__all__ = ["Patch", "PatchRefused", "Step", "decide"]

_LOCK, _NO_LOCK = b"\xf0", b"\x3e"
_MAX_STORE = 8
LOCK_PREFIX = "lock prefix"


class PatchRefused(KciError):
    """A store to verified code that is no step of a patch."""


class Step(StrEnum):
    """What a store does to a site."""

    ARM = "INT3 over the first byte"
    REST = "the bytes behind the first"
    FINISH = "the first byte"
    WHOLE = "a single byte"
    SAME = "nothing new"


@dataclass(frozen=True)
class Patch:
    """A store that may be made."""

    address: int
    """Of the site."""
    kind: str
    step: Step


def decide(rules: CodeRules, configuration: Configuration, address: int, new: bytes, read: ReadMemory) -> Patch:
    """Whether the store of `new` at virtual address `address` may be made. Raises PatchRefused with the reason.

    Text is patched through an alias in a temporary address space: whoever calls translates the faulting guest-physical
    address to the one at which the code runs. `read` reads the code as it is now; nobody else may write to it between
    the decision and the store.
    """
    if not 0 < len(new) <= _MAX_STORE or address not in rules.range or address + len(new) > rules.range.end:
        raise PatchRefused(f"a store of {len(new)} bytes at {address:#x} is not one to the code of {rules.range}")
    number = rules.live.find(address)
    if number is None:
        return _lock_prefix(rules, address, new, read)
    site = rules.live.site(number)
    start = address - site.address
    if start + len(new) > site.length:
        raise PatchRefused(f"a store of {len(new)} bytes at {address:#x} reaches beyond the {site.kind} there")
    old = read(site.address, site.length)
    armed = old[0] == INT3
    after = old[:start] + new + old[start + len(new) :]
    if after == old:
        # memcpy() may write a byte twice.
        return Patch(site.address, site.kind, Step.SAME)
    if start == 0 and new == bytes([INT3]) and not armed:
        step = Step.ARM
    elif start == 1 and len(new) == site.length - 1 and armed:
        step = Step.REST
    elif start == 0 and len(new) == 1 and armed:
        step = Step.FINISH
        if not _legal(rules, configuration, number, after):
            raise PatchRefused(f"{after.hex(' ')} is no content of the {site.kind} at {site.address:#x}")
    else:
        state = "which has an INT3 now" if armed else "which has no INT3 yet"
        raise PatchRefused(f"a store at the wrong step: {len(new)} bytes at {address:#x}, the {site.kind}'s, {state}")
    if step is Step.REST and not _has_first_byte(rules, configuration, number, new):
        raise PatchRefused(f"no content of the {site.kind} at {site.address:#x} ends with {new.hex(' ')}")
    return Patch(site.address, site.kind, step)


def _legal(rules: CodeRules, configuration: Configuration, number: int, content: bytes) -> bool:
    row = np.frombuffer(content.ljust(6, b"\0"), np.uint8)[None]
    return bool(rules.live.legal(row, rules.near, configuration.returns, np.array([number]))[0])


def _has_first_byte(rules: CodeRules, configuration: Configuration, number: int, rest: bytes) -> bool:
    """Whether there is a legal content that ends like this."""
    return any(_legal(rules, configuration, number, bytes([first]) + rest) for first in rules.live.first_bytes(number))


def _lock_prefix(rules: CodeRules, address: int, new: bytes, read: ReadMemory) -> Patch:
    # alternatives_enable_smp(): a second CPU comes. Lock prefixes are never taken out again.
    if rules.has_lock_prefix(address) and new == _LOCK and read(address, 1) in (_LOCK, _NO_LOCK):
        return Patch(address, LOCK_PREFIX, Step.WHOLE)
    raise PatchRefused(f"a store of {len(new)} bytes at {address:#x}, where nothing is patched at run time")
