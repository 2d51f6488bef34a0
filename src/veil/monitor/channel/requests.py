# SPDX-License-Identifier: GPL-2.0-or-later
"""What users may ask over the channel: VeilMon's own calls, and where those of services go."""

from __future__ import annotations

import enum
import json
import struct
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from veil.formats.channel import Request, Response, Status
from veil.formats.services_manifest import CHANNEL_SERVICE, NONCE_BYTES
from veil.monitor.guest_messages import ReportUnavailable

if TYPE_CHECKING:
    from veil.monitor.attestation import Attestation
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.service import Service

__all__ = ["MonitorCall", "RequestRefused", "Requests", "User"]

_ATTESTED = struct.Struct("<III")


class MonitorCall(enum.IntEnum):
    """Calls of CHANNEL_SERVICE."""

    PING = 0
    """The body comes back."""
    ATTEST = 1
    """Nonce (64 bytes) -> u32 lengths of report, services manifest and certificates, then these."""
    STATUS = 2
    """-> JSON: what runs under VeilMon."""


@dataclass(frozen=True)
class User:
    """Who asks. `fingerprint`: SHA-256 of the public key proved in the handshake, if any."""

    fingerprint: bytes | None
    is_owner: bool


class RequestRefused(Exception):
    """A request ends with this status and a line of text."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


class Requests:
    """Answers requests, one at a time."""

    def __init__(
        self, attestation: Attestation, services: Sequence[Service], status: Callable[[], dict[str, Any]]
    ) -> None:
        self._attestation = attestation
        self._services: dict[uuid.UUID, Service] = {service.guid: service for service in services}
        self._status = status

    def answer(self, host: Ghcb, user: User, request: Request) -> Generator[None, None, Response]:
        """The response to a request; never raises for what a user sent."""
        try:
            if request.service == CHANNEL_SERVICE:
                body = yield from self._own(host, request)
            else:
                service = self._services.get(request.service)
                if service is None:
                    raise RequestRefused(Status.UNKNOWN_SERVICE, f"there is no service {request.service}")
                body = _ask_service(service, user, request)
            return Response(request.number, Status.OK, body)
        except RequestRefused as refusal:
            return Response(request.number, refusal.status, str(refusal).encode())

    def _own(self, host: Ghcb, request: Request) -> Generator[None, None, bytes]:
        if request.call == MonitorCall.PING:
            return request.body
        if request.call == MonitorCall.STATUS:
            return json.dumps(self._status(), sort_keys=True).encode()
        if request.call == MonitorCall.ATTEST:
            if len(request.body) != NONCE_BYTES:
                raise RequestRefused(Status.BAD_REQUEST, f"a nonce has {NONCE_BYTES} bytes, not {len(request.body)}")
            manifest = self._attestation.services_manifest()
            try:
                evidence = yield from self._attestation.attest(host, request.body, manifest)
            except ReportUnavailable as error:
                raise RequestRefused(Status.UNAVAILABLE, str(error)) from error
            certificates = evidence.certificates.rstrip(b"\0")
            lengths = _ATTESTED.pack(len(evidence.report), len(manifest), len(certificates))
            return lengths + evidence.report + manifest + certificates
        raise RequestRefused(Status.UNKNOWN_CALL, f"VeilMon has no call {request.call}")


def _ask_service(service: Service, user: User, request: Request) -> bytes:
    try:
        return service.user_request(user, request.call, request.body)
    except RequestRefused:
        raise
    except Exception as error:
        # A mistake in a service, brought out by what a user sent, must not stop VeilMon and with it the machine.
        raise RequestRefused(Status.UNAVAILABLE, f"the service {service.name} failed: {error!r}") from error
