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
from veil.formats.request_block import BlockRequest
from veil.formats.services_manifest import CHANNEL_SERVICE, NONCE_BYTES
from veil.monitor.guest_messages import ReportUnavailable
from veil.monitor.service_domain import ServicesUnavailable

if TYPE_CHECKING:
    from veil.monitor.attestation import Attestation
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.service_domain import ServiceDomain, ServiceInfo

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
        self,
        attestation: Attestation,
        domain: ServiceDomain,
        services: Sequence[ServiceInfo],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._attestation = attestation
        self._domain = domain
        self._services: dict[uuid.UUID, ServiceInfo] = {service.guid: service for service in services}
        self._status = status

    def answer(self, host: Ghcb, vcpu: int, user: User, request: Request) -> Generator[None, None, Response]:
        """The response to a request; never raises for what a user sent."""
        try:
            if request.service == CHANNEL_SERVICE:
                body = yield from self._own(host, request)
            else:
                service = self._services.get(request.service)
                if service is None:
                    raise RequestRefused(Status.UNKNOWN_SERVICE, f"there is no service {request.service}")
                return (yield from self._ask_service(host, vcpu, service, user, request))
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

    def _ask_service(
        self, host: Ghcb, vcpu: int, service: ServiceInfo, user: User, request: Request
    ) -> Generator[None, None, Response]:
        if len(request.body) > self._domain.room:
            raise RequestRefused(Status.BAD_REQUEST, f"a request to a service has at most {self._domain.room} bytes")
        asked = BlockRequest(
            service.number, request.call, request.body, user_key=user.fingerprint, is_owner=user.is_owner
        )
        try:
            status, body = yield from self._domain.request(host, vcpu, asked)
        except ServicesUnavailable as error:
            raise RequestRefused(Status.UNAVAILABLE, str(error)) from error
        return Response(request.number, status, body)
