# SPDX-License-Identifier: GPL-2.0-or-later
"""The root of the errors that Veil reports to people, and words for those of the operating system."""

from veil.disk import is_full

__all__ = ["VeilError", "describe"]


class VeilError(Exception):
    """Something went wrong that one clear line explains."""


def describe(error: OSError) -> str:
    """What the operating system says, without the path, which our own words name already."""
    return "the disk is full" if is_full(error) else error.strerror or str(error)
