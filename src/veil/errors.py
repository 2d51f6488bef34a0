# SPDX-License-Identifier: GPL-2.0-or-later
"""The root of the errors that Veil reports to people, and words for those of the operating system."""

import shutil

from veil.disk import is_full

__all__ = ["VeilError", "describe"]


class VeilError(Exception):
    """Something went wrong that one clear line explains."""


def describe(error: OSError) -> str:
    """What the operating system says, without the path, which our own words name already."""
    if is_full(error):
        return "the disk is full"
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][-1])  # of copytree, which lists every file
    return error.strerror or str(error)
