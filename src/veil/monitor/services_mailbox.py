# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon's way to the protected services at VMPL 1: the mailbox, and a domain switch on the same VCPU."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from veil.formats.domains import Domain
from veil.formats.errors import FormatError
from veil.formats.request_block import BLOCK_HEADER, BlockRequest, read_answer, write_request
from veil.formats.service_domain import (
    SERVICES_DOMAIN,
    DomainCall,
    ServiceInfo,
    mailbox_and_outbox,
    parse_description,
)
from veil.formats.status import Status

if TYPE_CHECKING:
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.grants import Grants
    from veil.monitor.parameters import MonitorParameters
    from veil.snp.view import View

__all__ = ["ServiceDomain", "ServicesUnavailable"]

_SERVICE_VMPL = Domain.SER.vmpl
_TRIES = 64
_TICKETS = 1 << 32


class ServicesUnavailable(Exception):
    """The services' domain did not answer; one line why."""


class ServiceDomain:
    """One request at a time, from whichever VCPU VeilMon runs on."""

    def __init__(self, view: View, parameters: MonitorParameters, grants: Grants) -> None:
        self._view = view
        (self._mailbox, self._size), _ = mailbox_and_outbox(parameters.mailbox_gpa, parameters.mailbox_size)
        self._grants = grants
        self._ticket = 0

    @property
    def room(self) -> int:
        """Bytes that a request or an answer may have."""
        return self._size - BLOCK_HEADER

    def describe(self, host: Ghcb) -> Generator[None, None, list[ServiceInfo]]:
        """Who there is. The first request starts the domain. Raises ServicesUnavailable."""
        status, body = yield from self.request(host, 0, BlockRequest(SERVICES_DOMAIN, DomainCall.DESCRIBE, b""))
        if status != Status.OK:
            raise ServicesUnavailable(f"the services do not say who they are: {status.name}")
        try:
            return parse_description(body)
        except (ValueError, KeyError, TypeError) as error:
            raise ServicesUnavailable(f"the services do not say who they are: {error!r}") from error

    def request(self, host: Ghcb, vcpu: int, request: BlockRequest) -> Generator[None, None, tuple[Status, bytes]]:
        """Ask and wait. Raises ServicesUnavailable if the host does not let the domain run.

        The domain may have to ask VeilMon before it can answer, for another VCPU's kernel as well: that is served here.
        """
        # What the domain finds to say later to a request that was given up must not pass for another one's answer.
        self._ticket = (self._ticket + 1) % _TICKETS
        asked = request._replace(vcpu=vcpu, ticket=self._ticket)
        try:
            write_request(self._view, self._mailbox, self._size, asked)
            tries = 0
            while tries < _TRIES and (yield from host.run_vmpl(_SERVICE_VMPL)):
                answer = read_answer(self._view, self._mailbox, self._size)
                if answer is not None:
                    return answer
                tries = 0 if (yield from self._grants.serve(host.cpu)) else tries + 1
        except FormatError as error:
            raise ServicesUnavailable(str(error)) from error
        # It must not be served at some later time, when somebody else waits for an answer.
        self._view.write_u32(self._mailbox, 0)
        raise ServicesUnavailable("the host does not run the services' domain")
