# SPDX-License-Identifier: GPL-2.0-or-later
"""What a remote user believes, and what they demand."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Any, Self

from veil.formats.launch_digest import LaunchLog
from veil.remote.attestation.policy import Policy
from veil.remote.attestation.roots import TrustedRoots

__all__ = ["Trust"]


@dataclass(frozen=True)
class Trust:
    """Decides whether evidence is enough."""

    policy: Policy
    """It should name the launch digests that are good; the one of `expected` is added to them."""
    roots: TrustedRoots | None = None
    """AMD's if None."""
    certificates: tuple[bytes, ...] = ()
    """DER or PEM, in place of those that the host gives."""
    at: datetime.datetime | None = None
    """When certificates must be valid; now if None."""
    crls: tuple[bytes, ...] = ()
    """Revocation lists of the roots."""
    expected: LaunchLog | None = None
    """What should have been launched."""
    host_log: LaunchLog | None = None
    """What the host says it launched: a launch digest that is not the expected one does not tell what was changed, this
    does, if it leads to the digest in the report. Otherwise the host lies about it."""

    def replace(self, **changes: Any) -> Self:
        """The same with other values."""
        return dataclasses.replace(self, **changes)
