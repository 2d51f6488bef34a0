# SPDX-License-Identifier: GPL-2.0-or-later
"""How what ends a guest reads."""

from __future__ import annotations

import pytest

from veil.cvm import CommandTimeout
from veil.cvm.errors import explained
from veil.errors import VeilError
from veil.formats.merkle import leaf_hash
from veil.host import HostError
from veil.snp import SnpError


def _same(error: HostError) -> HostError:
    return error


def test_a_guest_that_is_too_slow() -> None:
    with pytest.raises(CommandTimeout, match="too slow"), explained(_same, None):
        raise TimeoutError("too slow")


def test_the_machine() -> None:
    with pytest.raises(VeilError, match="no such page") as caught, explained(_same, None):
        raise SnpError("no such page")
    assert not isinstance(caught.value, SnpError)


def test_a_panic_is_what_a_reset_comes_from() -> None:
    panic = HostError("the kernel panicked")
    with pytest.raises(HostError, match="panicked"), explained(lambda _: panic, None):
        raise HostError("the guest was reset")
    with pytest.raises(HostError, match="was reset"), explained(_same, None):
        raise HostError("the guest was reset")


def test_nonsense_in_a_snapshot_is_one_line_but_not_the_callers_mistakes() -> None:
    with pytest.raises(VeilError, match="the snapshot FILE cannot go on: TypeError"), explained(_same, "FILE"):
        leaf_hash(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError), explained(_same, None):
        leaf_hash(None)  # type: ignore[arg-type]
    with pytest.raises(KeyError), explained(_same, "FILE"):
        raise KeyError("a caller's own")
