# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-KCI refuses, in one line."""

from veil.services.context import Asking, MonitorRefused
from veil.snp.errors import RmpViolation

__all__ = ["REFUSALS", "ImageError", "KciError", "NotGivenBack", "TableError", "reason", "undo"]


class KciError(Exception):
    """Something about kernel code is not as it must be; one line says what and where."""


class ImageError(KciError):
    """A kernel image that cannot be understood: code integrity cannot be promised for it."""


class TableError(KciError):
    """A table of patch sites with an entry that no sound image has."""


class NotGivenBack(KciError):
    """Something was refused, and what was taken for it could not be given back: both reasons."""


#: What the kernel or the host can bring about at any time. Anything else is a mistake of VeilS-KCI's.
REFUSALS = (KciError, MonitorRefused, RmpViolation)


def reason(error: Exception) -> str:
    """One line for the log: what failed, whoever brought it about."""
    if isinstance(error, RmpViolation):
        # Pages that VeilMon granted stay reachable, unless the host takes them back (RMPUPDATE).
        return f"the host took memory away ({error})"
    return str(error) if isinstance(error, REFUSALS) else f"VeilS-KCI failed: {error!r:.200}"


def undo(error: Exception, work: Asking[None]) -> Asking[None]:
    """Give back what was taken, because of an error. If that is refused as well, a NotGivenBack says both."""
    try:
        yield from work
    except REFUSALS as second:
        raise NotGivenBack(f"{reason(error)}; and then {reason(second)}") from second
