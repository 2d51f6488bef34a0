# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong with the judge itself."""

__all__ = ["JudgeError"]


class JudgeError(Exception):
    """One line for whoever asked: the checkout is not one, or cannot be built."""
