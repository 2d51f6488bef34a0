# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of a guest's console, and who hears of it."""

from __future__ import annotations

from veil.cvm.console import Console


def test_the_end_is_kept_and_all_is_heard() -> None:
    heard, panic = list[bytes](), list[bytes]()
    console = Console(heard.append)
    console.panic = panic.append
    pieces = [bytes((number,)) * 1000 for number in range(100)]
    for piece in pieces:
        console.feed(piece)
    assert heard == panic == pieces
    # A guest that prints without end fills no memory.
    assert b"".join(pieces).endswith(console.output)
    assert 63 * 1024 < len(console.output) <= 64 * 1024


def test_nobody_watches() -> None:
    console = Console(None)
    console.feed(b"Linux")
    assert console.output == b"Linux"
