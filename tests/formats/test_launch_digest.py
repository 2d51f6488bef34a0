# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch logs by hostile hosts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from veil.formats.errors import FormatError
from veil.formats.launch_digest import LaunchEntry, LaunchLog, PageType

KERNEL = LaunchEntry.of("kernel", 0x100000, PageType.NORMAL, b"k" * 8192)
VMSA = LaunchEntry.of("vmsa", 0x200000, PageType.VMSA, b"v" * 4096)
EXPECTED = LaunchLog((KERNEL, VMSA))


def test_where_a_vmsa_is_said_to_be_makes_no_difference() -> None:
    """It is not measured: with an address of his choice a host could accuse a good VMSA."""
    moved = LaunchLog((KERNEL, replace(VMSA, gpa=0x700000)))
    assert moved.digest() == EXPECTED.digest()
    assert EXPECTED.differences(moved) == []


@pytest.mark.parametrize("gpa", [VMSA.gpa, KERNEL.gpa, 0x700000])
def test_a_vmsa_more_is_told_wherever_it_is_said_to_be(gpa: int) -> None:
    more = LaunchEntry.of("vmsa", gpa, PageType.VMSA, b"another".ljust(4096))
    assert EXPECTED.differences(LaunchLog((KERNEL, VMSA, more))) == ["1 more pages"]
    assert EXPECTED.differences(LaunchLog((KERNEL, more, VMSA))) == ["vmsa", "1 more pages"]


def test_a_page_that_is_launched_twice() -> None:
    again = LaunchLog((KERNEL, VMSA, KERNEL))
    assert EXPECTED.differences(again) == ["2 more pages"]


def test_few_bytes_that_claim_many_pages() -> None:
    zeros = {"name": "zeros", "gpa": 0, "type": "ZERO", "pages": 1 << 17}
    log = {"format": "veil launch log 1", "entries": [zeros, zeros]}
    assert len(LaunchLog.parse(json.dumps(log).encode()).entries) == 2
    log["entries"] = [zeros] * 3
    with pytest.raises(FormatError, match="at most 262144 pages"):
        LaunchLog.parse(json.dumps(log).encode())
