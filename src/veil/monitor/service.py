# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of a protected service: the calls it answers, the memory it owns, what it adds to attestation.

docs/writing-a-service.md shows one from end to end.
"""

from __future__ import annotations

import abc
import uuid
from typing import TYPE_CHECKING, ClassVar

from veil.formats.channel import Status
from veil.monitor.channel.requests import RequestRefused, User
from veil.monitor.pages import PageBook
from veil.monitor.requests import CallError, Request, Result, ResultCode

if TYPE_CHECKING:
    from veil.snp.view import View

__all__ = ["FIRST_SERVICE_PROTOCOL", "Service", "ServiceContext"]

#: Protocol numbers below are the specification's (58019, table 3).
FIRST_SERVICE_PROTOCOL = 16


class ServiceContext:
    """What a service can reach: its own memory, and copies of the caller's."""

    def __init__(self, own: View, gpa: int, size: int, guest: View, book: PageBook) -> None:
        self.size = size
        self._own = own
        self._gpa = gpa
        self._guest = guest
        self._book = book

    def read(self, offset: int, length: int) -> bytes:
        """From its own memory, as VMPL 1."""
        return self._own.read(self._place(offset, length), length)

    def write(self, offset: int, data: bytes) -> None:
        """To its own memory, as VMPL 1."""
        self._own.write(self._place(offset, len(data)), data)

    def _place(self, offset: int, length: int) -> int:
        # A service has no business in another one's memory, which VMPL 1 could reach.
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset:#x}+{length:#x} is outside of the service's {self.size:#x} bytes")
        return self._gpa + offset

    def read_guest(self, gpa: int, length: int) -> bytes:
        """A copy of memory that a caller named: check and use the copy, the original may change any time.

        Raises CallError (INVALID_ADDRESS) unless all of it is memory that the caller itself may read and write.
        """
        self._check_guest(gpa, length)
        return self._guest.read(gpa, length)

    def write_guest(self, gpa: int, data: bytes) -> None:
        """An answer to memory that a caller named; raises like `read_guest`."""
        self._check_guest(gpa, len(data))
        self._guest.write(gpa, data)

    def _check_guest(self, gpa: int, length: int) -> None:
        # Without this a caller could have a service, which runs above it, read or overwrite what it cannot.
        if not self._book.is_guest_data(gpa, length):
            raise CallError(ResultCode.INVALID_ADDRESS)


class Service(abc.ABC):
    """A protected service (DomSER). One object for the machine; calls come one at a time."""

    name: ClassVar[str]
    protocol: ClassVar[int]
    """Its SVSM protocol number, from FIRST_SERVICE_PROTOCOL on."""
    guid: ClassVar[uuid.UUID]
    """Names its manifest in attestation."""
    versions: ClassVar[tuple[int, int]] = (1, 1)
    """Lowest and highest version of the protocol."""
    memory: ClassVar[int] = 0
    """Bytes of the services' region that it needs, whole pages."""

    context: ServiceContext
    """Set before `start` and before `restore`."""

    def start(self) -> None:  # noqa: B027
        """Called once at boot, before the kernel runs. The memory is zero."""

    @abc.abstractmethod
    def call(self, request: Request) -> Result:
        """Answer a call from the guest, or raise CallError. The request's registers are copies."""

    def user_request(self, user: User, call: int, body: bytes) -> bytes:
        """Answer a request that came over the secure channel, from a remote user, or raise RequestRefused."""
        raise RequestRefused(Status.UNKNOWN_CALL, f"the service {self.name} has no call {call}")

    def manifest(self) -> bytes:
        """What attestation says of the service."""
        return b""

    def save(self) -> bytes:
        """State that is not in the service's memory, for a snapshot."""
        return b""

    def restore(self, data: bytes) -> None:  # noqa: B027
        """Take back what `save` gave; called in place of `start`."""
