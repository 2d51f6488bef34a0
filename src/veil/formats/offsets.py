# SPDX-License-Identifier: GPL-2.0-or-later
"""Offsets of the specifications, asserted when a layout is imported."""

from __future__ import annotations

import ctypes

__all__ = ["check_offsets"]


def check_offsets(layout: type[ctypes.Structure], size: int, offsets: dict[str, int]) -> None:
    """Raise AssertionError unless the layout has this size in bytes and its fields are at these offsets."""
    if ctypes.sizeof(layout) != size:
        raise AssertionError(f"{layout.__name__} has {ctypes.sizeof(layout):#x} bytes, not {size:#x}")
    for name, offset in offsets.items():
        if getattr(layout, name).offset != offset:
            raise AssertionError(f"{layout.__name__}.{name} is at {getattr(layout, name).offset:#x}, not {offset:#x}")
