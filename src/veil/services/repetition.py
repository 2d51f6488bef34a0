# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens again and again in the hands of a hostile kernel or program: so much of it is told that it shows."""

from __future__ import annotations

__all__ = ["is_told"]


def is_told(count: int, all_told: int) -> bool:
    """Is the `count`th of its kind, from 1, told? The first `all_told` are, then each doubling."""
    return count <= all_told or count & (count - 1) == 0
