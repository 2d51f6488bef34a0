# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong with the guest's image and its agent, each as one line for the user."""

import errno

from veil.errors import VeilError


class GuestImageError(VeilError):
    """The kernel, the initramfs or the boot data cannot be made; the message says which and why."""


class NoDriverError(GuestImageError):
    """The driver cannot be had for a kernel, however often it is tried; the message says why."""


class AgentError(VeilError):
    """The guest agent broke its protocol or refused a request."""


class GuestCommandError(VeilError):
    """The guest could not start a command, or not finish a copy; `errno` is the guest's."""

    def __init__(self, message: str, number: int) -> None:
        self.errno = number
        super().__init__(message)


class CommandNotStarted(GuestCommandError):
    """The guest has no such command, or cannot run it; `exit_status` is what shells give then (POSIX, 2.8.2)."""

    @property
    def exit_status(self) -> int:
        """127 for a command that was not found, 126 for one that is not a program."""
        return 127 if self.errno == errno.ENOENT else 126
