# SPDX-License-Identifier: GPL-2.0-or-later
"""What a remote user is told when something does not hold."""

from __future__ import annotations

from veil.errors import VeilError

__all__ = ["RemoteError", "VerificationFailed"]


class RemoteError(VeilError):
    """The base of the remote user's errors."""


class VerificationFailed(RemoteError):
    """Evidence does not prove what was asked for; the message names the checks that failed."""
