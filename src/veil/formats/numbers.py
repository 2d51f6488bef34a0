# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers out of JSON, which has them of any size, with fractions, and infinite."""

from __future__ import annotations

from veil.formats.errors import FormatError

__all__ = ["u64"]


def u64(value: object) -> int:
    """A whole number below 2^64, as all sizes, times and counts here are. Raises FormatError."""
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise FormatError("a number is not a whole one below 2^64")
    return value
