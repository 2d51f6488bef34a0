# SPDX-License-Identifier: GPL-2.0-or-later
"""RDRAND and RDSEED: one level of the guest learns nothing of another's numbers from its own."""

from __future__ import annotations

import random
import struct

import pytest

from tests.small_guest import FREE, SmallGuest
from veil.snp import ExitCode

#: words of 32 bits that are the whole state of a Mersenne Twister
_STATE = 624
_MORE = 16


def _untempered(word: int) -> int:
    """The word of the state from which a Mersenne Twister (MT19937) made this one."""
    word ^= word >> 18
    word ^= word << 15 & 0xEFC60000
    found = word
    for _ in range(5):
        found = word ^ (found << 7 & 0x9D2C5680)
    word = found
    for _ in range(3):
        found = word ^ found >> 11
    return found & 0xFFFFFFFF


def _predicted(words: tuple[int, ...]) -> list[int]:
    """What a Mersenne Twister gives behind these words."""
    twin = random.Random()
    twin.setstate((3, (*map(_untempered, words), _STATE), None))
    return [twin.getrandbits(32) for _ in range(_MORE)]


def _words(instruction: str) -> tuple[int, ...]:
    count = (_STATE + _MORE) // 2
    code = f"mov rdi, {FREE}\nmov ecx, {count}\n1: {instruction} rax\njnc 1b\nstosq\nloop 1b\nhlt"
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        return struct.unpack(f"<{2 * count}I", guest.top.read(FREE, 8 * count))


@pytest.mark.parametrize("instruction", ["rdrand", "rdseed"])
def test_nobody_knows_the_next_ones(instruction: str) -> None:
    """A kernel that has seen some would know an enclave's keys and nonces."""
    words = _words(instruction)
    assert len(set(words)) > _STATE, "they are random at all"
    assert _predicted(words[:_STATE]) != list(words[_STATE:])


def test_a_generator_that_can_be_predicted_is_found() -> None:
    source = random.Random(1)
    words = tuple(source.getrandbits(32) for _ in range(_STATE))
    assert _predicted(words) == [source.getrandbits(32) for _ in range(_MORE)]
