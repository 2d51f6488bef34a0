# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of a protected service: the calls it answers, the memory it owns, what it adds to attestation."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from veil.monitor.requests import Request, Result
    from veil.snp.view import View

__all__ = ["Service", "ServiceContext"]


class ServiceContext:
    """What a service may use: a view of VMPL 1, its own piece of the services' region, and a test of guest addresses."""

    def __init__(self, view: View, gpa: int, size: int, book: _GuestTest) -> None:
        self.view = view
        self.gpa = gpa
        self.size = size
        self._book = book

    def is_guest_memory(self, gpa: int, size: int) -> bool:
        """Is all of a range that a caller named the guest's own memory? Ask before you touch it."""
        return self._book.is_guest(gpa, size)


class _GuestTest(Protocol):
    def is_guest(self, gpa: int, size: int = 1) -> bool: ...


class Service(Protocol):
    """A protected service (DomSER). One object for the machine; calls come one at a time."""

    name: str
    protocol: int
    """Its SVSM protocol number; 0 to 15 are the specification's."""
    versions: tuple[int, int]
    """Lowest and highest version of the protocol."""
    guid: uuid.UUID
    """Names its manifest in attestation."""
    memory: int
    """Bytes of the services' region that it needs, whole pages."""

    def start(self, context: ServiceContext) -> None:
        """Called once at boot, before the kernel runs."""

    def call(self, request: Request) -> Result:
        """Answer a guest's call. The request's registers are copies; memory it points to can change while you read."""

    def manifest(self) -> bytes:
        """What attestation says of the service."""

    def save(self) -> bytes:
        """State that is not in the service's memory."""

    def restore(self, data: bytes, context: ServiceContext) -> None:
        """Take it back."""
