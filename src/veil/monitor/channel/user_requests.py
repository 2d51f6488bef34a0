# SPDX-License-Identifier: GPL-2.0-or-later
"""What users may ask over the channel: VeilMon's own calls, and where those of services go."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from veil.formats.channel import Request, Response
from veil.formats.monitor_calls import AttestedAnswer, MonitorCall
from veil.formats.request_block import BlockRequest
from veil.formats.roles import Call, Role, User, admit
from veil.formats.services_manifest import CHANNEL_SERVICE, NONCE_BYTES
from veil.formats.status import Refused, Status
from veil.monitor.secure_processor import AnswerUnavailable
from veil.monitor.services_mailbox import ServicesUnavailable

if TYPE_CHECKING:
    from veil.formats.service_domain import ServiceInfo
    from veil.monitor.attestation import Attestation
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.services_mailbox import ServicesMailbox

__all__ = ["Requests"]


class Requests:
    """Answers requests, one at a time."""

    def __init__(
        self,
        attestation: Attestation,
        mailbox: ServicesMailbox,
        services: Sequence[ServiceInfo],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._attestation = attestation
        self._mailbox = mailbox
        self._services: dict[uuid.UUID, ServiceInfo] = {service.guid: service for service in services}
        self._status = status

    def answer(self, host: Ghcb, vcpu: int, user: User, request: Request) -> Generator[None, None, Response]:
        """The response to a request; never raises for what a user sent."""
        try:
            if request.service == CHANNEL_SERVICE:
                handler = admit(self.calls, request.call, user.role, "VeilMon")
                body = yield from handler(self, host, request.body)
            else:
                service = self._services.get(request.service)
                if service is None:
                    raise Refused(Status.UNKNOWN_SERVICE, f"there is no service {request.service}")
                return (yield from self._ask_service(host, vcpu, service, user, request))
            return Response(request.number, Status.OK, body)
        except Refused as refusal:
            return Response(request.number, refusal.status, str(refusal).encode())

    def _ping(self, host: Ghcb, body: bytes) -> Generator[None, None, bytes]:
        yield from ()
        return body

    def _tell_status(self, host: Ghcb, body: bytes) -> Generator[None, None, bytes]:
        yield from ()
        return json.dumps(self._status(), sort_keys=True).encode()

    def _attest(self, host: Ghcb, nonce: bytes) -> Generator[None, None, bytes]:
        if len(nonce) != NONCE_BYTES:
            raise Refused(Status.BAD_REQUEST, f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        manifest = self._attestation.services_manifest()
        try:
            evidence = yield from self._attestation.attest(host, nonce, manifest)
        except AnswerUnavailable as error:
            raise Refused(Status.UNAVAILABLE, str(error)) from error
        certificates = evidence.certificates.rstrip(b"\0")
        return AttestedAnswer(evidence.report, manifest, certificates).pack()

    calls: ClassVar[Mapping[int, Call[Callable[[Requests, Ghcb, bytes], Generator[None, None, bytes]]]]] = {
        MonitorCall.PING: Call(Role.ANYONE, _ping),
        MonitorCall.ATTEST: Call(Role.ANYONE, _attest),
        # How many VCPUs the kernel has started is not part of attestation, so strangers do not learn it.
        MonitorCall.STATUS: Call(Role.READER, _tell_status),
    }
    """VeilMon's own calls. What is not here nobody may ask."""

    def _ask_service(
        self, host: Ghcb, vcpu: int, service: ServiceInfo, user: User, request: Request
    ) -> Generator[None, None, Response]:
        if len(request.body) > self._mailbox.room:
            raise Refused(Status.BAD_REQUEST, f"a request to a service has at most {self._mailbox.room} bytes")
        asked = BlockRequest(service.number, request.call, request.body, user_key=user.fingerprint, role=user.role)
        try:
            status, body = yield from self._mailbox.request(host, vcpu, asked)
        except ServicesUnavailable as error:
            raise Refused(Status.UNAVAILABLE, str(error)) from error
        return Response(request.number, status, body)
