# SPDX-License-Identifier: GPL-2.0-or-later
"""The root of the errors that Veil reports to people, and words for those of the operating system."""

import shutil

from veil.disk import is_full

__all__ = ["VeilError", "describe"]


class VeilError(Exception):
    """Something went wrong that one clear line explains."""


def describe(error: Exception) -> str:
    """What an error says; of the operating system's without the number, and the path, which our words name already."""
    if not isinstance(error, OSError):
        return str(error)
    if is_full(error):
        return "the disk is full"
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][-1])  # of copytree, which lists every file
    return error.strerror or str(error)
