# SPDX-License-Identifier: GPL-2.0-or-later
"""The few instructions that stand in for firmware when there is no monitor (accept.S)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["ACCEPT_CODE", "accept_memory"]

#: accept.S, assembled
ACCEPT_CODE = bytes.fromhex(
    "488d1d79000000488b3b4c8b43084883c3104d85c074594c39c773eb31c9f7c7ffff1f00750e4c8d8f000020004d39c17702"
    "ffc14889f8ba01000000f20f01ff721a85c07406ffc97812ebe8b8001000008d0cc948d3e04801c7ebbbb9300101c0b80011"
    "020031d20f30f30f01d9ebecffe766662e0f1f8400000000000f1f00"
)


def accept_memory(ranges: Sequence[tuple[int, int]], entry: int) -> bytes:
    """Position-independent code that PVALIDATEs every [start, end) and jumps to `entry`."""
    table = b"".join(struct.pack("<2Q", start, end) for start, end in ranges)
    return ACCEPT_CODE + table + struct.pack("<2Q", entry, 0)
