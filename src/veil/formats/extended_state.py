# SPDX-License-Identifier: GPL-2.0-or-later
"""How large an area of XSAVE is, from what CPUID leaf 0xD says of its components (APM volume 2, 11.5)."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXTENDED_STATE_LEAF", "LEGACY_AREA", "StateComponent", "area_size"]

EXTENDED_STATE_LEAF = 0xD
#: bytes with x87 and SSE, and the header behind them
LEGACY_AREA = 0x240
_LEGACY = 3
_ALIGNED = 1 << 1

#: EAX, EBX and ECX of a component's subleaf: its size, its place in the standard form, and flags
StateComponent = tuple[int, int, int]


def area_size(components: Mapping[int, StateComponent], enabled: int, *, compact: bool) -> int | None:
    """Bytes of an area for the components of `enabled` (XCR0; for the compact form XSS as well).

    `components` by number, which is that of their bit and subleaf. None: one that is enabled is not among them.
    """
    size, remaining = LEGACY_AREA, enabled & ~_LEGACY
    for number in range(2, 64):
        if not remaining >> number & 1:
            continue
        if number not in components:
            return None
        length, place, flags = components[number]
        if compact:
            place = size + 63 & -64 if flags & _ALIGNED else size
        size = max(size, place + length)
    return size
