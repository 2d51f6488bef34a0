# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-KCI refuses, in one line."""

__all__ = ["ImageError", "KciError", "TableError"]


class KciError(Exception):
    """Something about kernel code is not as it must be; one line says what and where."""


class ImageError(KciError):
    """A kernel image that cannot be understood: code integrity cannot be promised for it."""


class TableError(KciError):
    """A table of patch sites with an entry that no sound image has."""
