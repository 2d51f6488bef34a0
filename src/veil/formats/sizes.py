# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from veil.formats.errors import FormatError

__all__ = ["format_size", "parse_size"]


def parse_size(text: str) -> int:
    """Bytes from "512M", "4G", "1048576"; raises FormatError."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise FormatError(f"{text!r} is not a size: write a number and K, M or G, as in 512M")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


def format_size(size: int) -> str:
    """What `parse_size` reads as this many bytes, as short as it can be: "512M"."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)
