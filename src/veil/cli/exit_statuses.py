# SPDX-License-Identifier: GPL-2.0-or-later
"""The exit statuses of commands. Those of a guest's commands are passed through, and most programs' are small."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veil.errors import VeilError

__all__ = [
    "EXIT_FAILURE",
    "EXIT_FINDINGS",
    "EXIT_INTERRUPTED",
    "EXIT_NOT_VERIFIED",
    "EXIT_PIPE",
    "EXIT_USAGE",
    "status_of",
]

#: The evidence was looked at, and does not prove what was asked for.
EXIT_NOT_VERIFIED = 1
#: As click ends for options that do not exist.
EXIT_USAGE = 2
#: Verified, with findings that mean trouble.
EXIT_FINDINGS = 3
#: Veil itself failed.
EXIT_FAILURE = 125
#: As shells say of a program that SIGINT ended.
EXIT_INTERRUPTED = 130
#: The same for SIGPIPE.
EXIT_PIPE = 141


def status_of(error: VeilError) -> int:
    """A command that the guest cannot start has a status of its own, as has wrong usage; all else is `EXIT_FAILURE`."""
    from veil.cli.option_types import WrongValue
    from veil.guest.errors import CommandNotStarted

    if isinstance(error, WrongValue):
        return EXIT_USAGE
    return error.exit_status if isinstance(error, CommandNotStarted) else EXIT_FAILURE
