# SPDX-License-Identifier: GPL-2.0-or-later
"""How a request ended: the same numbers in messages of the channel and in request blocks."""

from __future__ import annotations

import enum

__all__ = ["Refused", "Status"]


class Status(enum.IntEnum):
    """How a request ended."""

    OK = 0
    UNKNOWN_SERVICE = 1
    UNKNOWN_CALL = 2
    BAD_REQUEST = 3
    NOT_ALLOWED = 4
    """This user may not ask this (`veil.formats.roles`)."""
    UNAVAILABLE = 5
    """Not now; the body says why."""
    FULL = 6
    """There is no room; ask again when somebody has made some."""


class Refused(Exception):
    """A request ends with this status and a line of text."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status
