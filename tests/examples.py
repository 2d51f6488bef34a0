# SPDX-License-Identifier: GPL-2.0-or-later
"""How many examples a long test takes."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["examples"]

_SHARE, _LEAST = 5, 20


def examples(count: int) -> int:
    """All of them with `--hypothesis-profile=search` (make soak), else a fifth: for tests that would take half a second
    and more with all. The others have what hypothesis, or they themselves, say."""
    return max(min(_LEAST, count), count // _SHARE) if settings().derandomize else count
