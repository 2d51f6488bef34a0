# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sizes of a page in the nested page tables and in the RMP (24593, section 15.36)."""

from __future__ import annotations

__all__ = ["PAGE_SIZE", "PAGE_SIZE_2M", "page_up"]

PAGE_SIZE = 4096
PAGE_SIZE_2M = 512 * PAGE_SIZE


def page_up(size: int) -> int:
    """The next multiple of a page's size, if it is none."""
    return (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
