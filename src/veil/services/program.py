# SPDX-License-Identifier: GPL-2.0-or-later
"""DomSER: the hosted program at VMPL 1 in which the services run.

Each VCPU has a VMSA for it. The kernel has the host run it with a request in its block; VeilMon has the host run it
with a request in the mailbox, from itself or from a remote user. Then it has the host run who asked.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from veil.formats.errors import FormatError
from veil.formats.ghcb import RUN_VMPL_REFUSED, MsrRequest, run_vmpl_request
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.request_block import BlockRequest, take_request, write_answer
from veil.formats.status import Status
from veil.services.interface import Refused, Service, ServiceMemory, User
from veil.services.parameters import ServiceParameters
from veil.snp.errors import RmpViolation
from veil.snp.hosted import HostedCpu

if TYPE_CHECKING:
    from veil.snp.view import View

__all__ = ["DESCRIBE", "MONITOR_SERVICE", "ServiceDomain"]

#: The service number under which VeilMon asks the domain itself, in the mailbox only.
MONITOR_SERVICE = 0
#: Its only call: JSON list of {name, number, guid, manifest (hexadecimal)}.
DESCRIBE = 0

_MONITOR, _KERNEL = 0, 3
_AP_RESET_HOLD = int(MsrRequest.AP_RESET_HOLD)
_BLOCK = struct.Struct("<QQ")
#: what begins a request in the mailbox (`request_block`): pending, then at 0x10 the VCPU
_MAILBOX = struct.Struct("<I12xI")


class ServiceDomain:
    """The program; a subclass names its services, and the image names the subclass."""

    service_types: ClassVar[tuple[type[Service], ...]] = ()

    def __init__(self) -> None:
        self.services = [kind() for kind in self.service_types]
        self._by_number = {service.number: service for service in self.services}
        self._parameters: ServiceParameters | None = None
        self._saved: dict[str, str] | None = None

    def run(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Start on a VCPU; the first one starts the services."""
        self._load(cpu)
        yield from self._serve(cpu)

    def resume(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Go on after a snapshot."""
        self._load(cpu)
        yield from self._serve(cpu)

    def save(self) -> bytes:
        """What the services keep outside of their memory."""
        if self._saved is not None and self._parameters is None:
            # Restored, and not run since: there is nothing newer.
            return json.dumps(self._saved).encode()
        return json.dumps({service.name: service.save().hex() for service in self.services}).encode()

    def restore(self, data: bytes) -> None:
        """Take back what `save` gave."""
        self._saved = json.loads(data)

    def _load(self, cpu: HostedCpu) -> None:
        if self._parameters is not None:
            return
        parameters = self._parameters = ServiceParameters.parse(cpu.parameters)
        settings, gpa = parameters.settings, parameters.memory_gpa
        for service in self.services:
            mine: dict[str, Any] = settings.get(service.name, {})
            size = service.memory_size(mine)
            if size % PAGE_SIZE or gpa + size > parameters.memory_gpa + parameters.memory_size:
                raise FormatError(f"no memory left for the service {service.name}")
            service.memory = ServiceMemory(cpu.view, gpa, size)
            service.now = cpu.tsc
            gpa += size
            if self._saved is None:
                service.start(mine)
            else:
                service.restore(mine, bytes.fromhex(self._saved.get(service.name, "")))

    def _serve(self, cpu: HostedCpu) -> Generator[None, None, None]:
        while True:
            asked = self._answer(cpu)
            if asked is None:
                self._tell_services()
            # A refusal may be an old one, and somebody may have come with a request since.
            if asked is None and cpu.ghcb_msr == RUN_VMPL_REFUSED:
                cpu.ghcb_msr = _AP_RESET_HOLD
            else:
                cpu.ghcb_msr = run_vmpl_request(_KERNEL if asked is None else asked)
            yield

    def _tell_services(self) -> None:
        for service in self.services:
            # The host took a service's memory away: it will be told so when it is asked.
            with suppress(RmpViolation):
                service.ran()

    def _answer(self, cpu: HostedCpu) -> int | None:
        """Serve what waits on this VCPU; returns the VMPL that asked, None if nobody did."""
        parameters = self._parameters
        assert parameters is not None
        view, vcpu = cpu.view, cpu.start_argument
        # VeilMon first: a kernel whose block is always pending must not keep users from their answers.
        mailbox = parameters.mailbox_gpa
        pending, asking = _MAILBOX.unpack(view.read(mailbox, _MAILBOX.size))
        if pending and asking == vcpu:
            size = parameters.mailbox_size
            request = take_request(view, mailbox, size)
            assert request is not None
            self._tell_services()
            write_answer(view, mailbox, size, *self._ask_for_monitor(request))
            return _MONITOR
        gpa, size = _BLOCK.unpack(view.read(parameters.blocks_gpa + vcpu * _BLOCK.size, _BLOCK.size))
        try:
            return _KERNEL if gpa and self._serve_block(view, vcpu, gpa, size) else None
        except RmpViolation:
            # The host took pages away, the block's (at any time: other VCPUs run meanwhile) or the service's own. The
            # kernel gets no answer, its request is pending still, and the domain lives on.
            return _KERNEL

    def _serve_block(self, view: View, vcpu: int, gpa: int, size: int) -> bool:
        try:
            request = take_request(view, gpa, size)
            if request is None:
                return False
            service = self._by_number.get(request.service)
            if service is None:
                write_answer(view, gpa, size, Status.UNKNOWN_SERVICE)
            else:
                write_answer(view, gpa, size, Status.OK, service.kernel_request(vcpu, request.call, request.body))
        except FormatError:
            write_answer(view, gpa, size, Status.BAD_REQUEST)
        except Refused as refusal:
            write_answer(view, gpa, size, refusal.status)
        return True

    def _ask_for_monitor(self, request: BlockRequest) -> tuple[Status, bytes]:
        if request.service == MONITOR_SERVICE:
            return Status.OK, self._describe()
        service = self._by_number.get(request.service)
        if service is None:
            return Status.UNKNOWN_SERVICE, b""
        user = User(request.user_key, request.role)
        try:
            return Status.OK, service.answer_user(user, request.call, request.body)
        except Refused as refusal:
            return refusal.status, str(refusal).encode()
        except Exception as error:
            # A mistake brought out by what a user sent must not stop the domain, and with it the kernel's calls.
            return Status.UNAVAILABLE, f"the service {service.name} failed: {error!r}".encode()

    def _describe(self) -> bytes:
        return json.dumps(
            [
                {
                    "name": service.name,
                    "number": service.number,
                    "guid": str(service.guid),
                    "manifest": service.manifest().hex(),
                }
                for service in self.services
            ]
        ).encode()
