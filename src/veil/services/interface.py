# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of a protected service: whom it answers, the memory it owns, what it adds to attestation.

docs/writing-a-service.md shows one from end to end.
"""

from __future__ import annotations

import abc
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias, final

from veil.formats.roles import Call, NotAdmitted, Role, admit
from veil.formats.status import Status

if TYPE_CHECKING:
    from veil.snp.view import View

__all__ = ["Refused", "Service", "ServiceMemory", "User", "UserHandler"]


class Refused(Exception):
    """A request ends with this status and a line of text."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class User:
    """A remote user, as VeilMon says. `fingerprint`: SHA-256 of the public key proved in the handshake, if any."""

    fingerprint: bytes | None
    role: Role


#: A method: service, user, body -> answer.
UserHandler: TypeAlias = Callable[[Any, User, bytes], bytes]


class ServiceMemory:
    """A service's own memory, by offset: VMPL 3 can neither read nor write it."""

    def __init__(self, view: View, gpa: int, size: int) -> None:
        self.size = size
        self._view = view
        self._gpa = gpa

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at an offset."""
        if offset < 0 or length < 0 or offset + length > self.size:
            self._refuse(offset, length)
        return self._view.read(self._gpa + offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put bytes at an offset."""
        if offset < 0 or offset + len(data) > self.size:
            self._refuse(offset, len(data))
        self._view.write(self._gpa + offset, data)

    def _refuse(self, offset: int, length: int) -> NoReturn:
        # A service has no business in another one's memory, which its level could reach.
        raise ValueError(f"{offset:#x}+{length:#x} is outside of the service's {self.size:#x} bytes")


class Service(abc.ABC):
    """A protected service. One object for the machine; requests come one at a time."""

    name: ClassVar[str]
    number: ClassVar[int]
    """By which the kernel calls it, 1 to 65535."""
    guid: ClassVar[uuid.UUID]
    """By which remote users call it, and under which its manifest stands in attestation."""

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {}
    """The calls of remote users: who may make each, and the method that answers it or raises Refused. What is not here
    nobody may ask."""

    memory: ServiceMemory
    """Set before `start` and before `restore`. Zero at first."""
    now: Callable[[], int]
    """The machine's time stamp counter in nanoseconds. Set like `memory`."""

    @staticmethod
    def nonce() -> bytes:
        """32 random bytes."""
        return os.urandom(32)

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        """Bytes of memory that it needs with these (measured) settings, whole pages."""
        return 0

    def start(self, settings: dict[str, Any]) -> None:  # noqa: B027
        """Called once at boot, before the kernel runs; `settings` are measured."""

    def kernel_request(self, vcpu: int, call: int, body: bytes) -> bytes:
        """Answer the kernel, which is not trusted, or raise Refused. `body` is a copy."""
        raise Refused(Status.UNKNOWN_CALL, f"the service {self.name} has no call {call} for the kernel")

    @final
    def answer_user(self, user: User, call: int, body: bytes) -> bytes:
        """Answer a request that came over the secure channel, by `user_calls`, or raise Refused."""
        try:
            handler = admit(self.user_calls, call, user.role, f"the service {self.name}")
        except NotAdmitted as refusal:
            raise Refused(refusal.status, str(refusal)) from None
        return handler(self, user, body)

    def ran(self) -> None:  # noqa: B027
        """The services run, and not for the kernel: a user asked, or nobody. An honest host sees to it each second."""

    def manifest(self) -> bytes:
        """What attestation says of the service: asked for once, after `start`."""
        return b""

    def save(self) -> bytes:
        """State that is not in the service's memory, for a snapshot."""
        return b""

    def restore(self, settings: dict[str, Any], data: bytes) -> None:  # noqa: B027
        """Take back what `save` gave; called in place of `start`."""
