# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations without coverage, the same in every run: for where atheris is not, and for `make test`; and one of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from fuzz.target import Target

__all__ = ["mutated", "mutations"]

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutations(target: Target, count: int) -> Iterator[bytes]:
    """Of the target's seeds."""
    chance = random.Random(target.name)
    seeds = list(target.seeds())
    for _ in range(count):
        yield mutated(chance, target, seeds)


def mutated(chance: random.Random, target: Target, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, changed in some places."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        _mutate(chance, data, target, seeds)
    return bytes(data[: target.max_bytes])


def _mutate(chance: random.Random, data: bytearray, target: Target, seeds: Sequence[bytes]) -> None:
    at = chance.randint(0, len(data))
    until = min(len(data), at + chance.randint(1, 32))
    kind = chance.randrange(7)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = chance.randrange(256)
    elif kind == 2:
        width = chance.choice((1, 2, 4, 8))
        number = (chance.choice(_NUMBERS) + chance.randint(-1, 1)) % (1 << 8 * width)
        data[at : at + width] = number.to_bytes(width, "little")
    elif kind == 3:
        del data[at:until]
    elif kind == 4:
        data[at:at] = data[at:until] * chance.randint(1, 3)
    elif kind == 5:
        other = chance.choice(seeds)
        data[at:] = other[min(at, len(other)) :] if chance.random() < 0.5 else b""
    else:
        data[at:at] = chance.choice(target.words) if target.words else chance.randbytes(4)
