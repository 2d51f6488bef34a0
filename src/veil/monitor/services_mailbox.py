# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon's way to the protected services at VMPL 1: the mailbox, and a domain switch on the same VCPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING

from veil.formats.domains import SERVICE_VMPL
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
from veil.monitor.ghcb import give_way
from veil.snp.errors import RmpViolation

if TYPE_CHECKING:
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.grants_broker import Grants
    from veil.monitor.parameters import MonitorParameters
    from veil.monitor.service_events import Hearing
    from veil.snp.view import View

__all__ = ["ServicesMailbox", "ServicesUnavailable"]

_TRIES = 64
_TICKETS = 1 << 32


class ServicesUnavailable(Exception):
    """The services' domain did not answer; one line why."""


class ServicesMailbox:
    """One request at a time, from whichever VCPU VeilMon runs on."""

    def __init__(self, view: View, parameters: MonitorParameters, grants: Grants) -> None:
        #: a request is in the mailbox: its VCPU waits for the host
        self.busy = False
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

    def tell(self, host: Ghcb, vcpu: int, hearing: Hearing) -> Generator[None, None, None]:
        """What was done for the kernel, on whichever VCPU, in its order. What the host keeps from them is counted."""
        yield from self._wait(host)
        try:
            if not hearing.waits:
                return  # another VCPU has told it
            report = hearing.take()
            try:
                asked = BlockRequest(SERVICES_DOMAIN, DomainCall.HEAR, report.pack())
                yield from self._request(host, vcpu, asked)
            except ServicesUnavailable:
                hearing.lose(report)
        finally:
            self.busy = False

    def request(self, host: Ghcb, vcpu: int, request: BlockRequest) -> Generator[None, None, tuple[Status, bytes]]:
        """Ask and wait. Raises ServicesUnavailable if the host does not let the domain run.

        The domain may have to ask VeilMon before it can answer, for another VCPU's kernel as well: that is served here.
        """
        yield from self._wait(host)
        try:
            return (yield from self._request(host, vcpu, request))
        finally:
            self.busy = False

    def _wait(self, host: Ghcb) -> Generator[None, None, None]:
        """Until the mailbox is this VCPU's. While another one has it there is only that the host may run that one."""
        while self.busy:
            yield from give_way(host.cpu)
        self.busy = True

    def _request(self, host: Ghcb, vcpu: int, request: BlockRequest) -> Generator[None, None, tuple[Status, bytes]]:
        # What the domain finds to say later to a request that was given up must not pass for another one's answer.
        self._ticket = (self._ticket + 1) % _TICKETS
        asked = request._replace(vcpu=vcpu, ticket=self._ticket)
        try:
            write_request(self._view, self._mailbox, self._size, asked)
            tries = 0
            while tries < _TRIES and (yield from host.run_vmpl(SERVICE_VMPL)):
                answer = read_answer(self._view, self._mailbox, self._size)
                if answer is not None:
                    return answer
                served = self._grants.is_asked(self._view)
                if served:
                    yield from self._grants.serve(host)
                # What another VCPU is about to do for the domain takes until the host runs that one.
                tries = 0 if served or self._grants.busy else tries + 1
            why = "the host does not run the services' domain"
        except FormatError as error:
            raise ServicesUnavailable(str(error)) from error
        except RmpViolation as violation:
            why = f"the host took the mailbox away: {violation}"
        with suppress(RmpViolation):
            # It must not be served at some later time, when somebody else waits for an answer.
            self._view.write_u32(self._mailbox, 0)
        raise ServicesUnavailable(why)
