# SPDX-License-Identifier: GPL-2.0-or-later
"""What a remote user may be to a CVM, and who may make which call: data that VeilMon and the services share."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from veil.formats.status import Refused, Status

__all__ = ["Call", "Role", "User", "admit"]

_Handler = TypeVar("_Handler")


class Role(enum.IntEnum):
    """What a user proved to be, by the key of their handshake. Each may do what those before it may."""

    ANYONE = 0
    """They proved nothing that the launch knows of: they may learn what attestation says."""
    READER = 1
    """The CVM was launched with their key as a reader's."""
    OWNER = 2
    """The CVM was launched with their key as an owner's."""


@dataclass(frozen=True)
class User:
    """The one who asks, as VeilMon says. `fingerprint`: SHA-256 of the public key proved in the handshake, if any."""

    fingerprint: bytes | None
    role: Role


class Call(NamedTuple, Generic[_Handler]):
    """A call that users may make: the least role that it takes, and who answers it.

    They stand with what answers them: `user_calls` of a service; VeilMon's in `monitor/channel/user_requests.py`.
    """

    role: Role
    handler: _Handler


_ONLY = {Role.READER: "a reader or an owner", Role.OWNER: "an owner"}


def admit(calls: Mapping[int, Call[_Handler]], number: int, role: Role, of: str) -> _Handler:
    """The handler of a call, if a user of this role may make it; `of` says for people whose call it is.

    The one check of who may ask what, for VeilMon's calls and for those of all services. What is not declared nobody
    may ask. Raises Refused.
    """
    declared = calls.get(number)
    if declared is None:
        raise Refused(Status.UNKNOWN_CALL, f"{of} has no call {number}")
    if role < declared.role:
        raise Refused(Status.NOT_ALLOWED, f"only {_ONLY[declared.role]} of this CVM may make call {number} of {of}")
    return declared.handler
