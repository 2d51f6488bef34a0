# SPDX-License-Identifier: GPL-2.0-or-later
"""DomSER: the hosted program at VMPL 1 in which the services run.

Each VCPU has a VMSA for it. The kernel has the host run it with a request in its block; VeilMon has the host run it
with a request in the mailbox, from itself or from a remote user. Then it has the host run who asked.

One request is served at a time. While its handler waits for VeilMon (the outbox), the domain takes no other one; any
VCPU on which it runs takes the one that waits further.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import GeneratorType
from typing import TYPE_CHECKING, Any, ClassVar

from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL, VMPLS
from veil.formats.errors import FormatError
from veil.formats.ghcb import RUN_VMPL_REFUSED, MsrRequest, run_vmpl_request
from veil.formats.nested_faults import needed_permission
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.request_block import (
    BLOCK_HEADER,
    BlockRequest,
    read_answer,
    take_request,
    waiting_ticket,
    write_answer,
    write_request,
)
from veil.formats.roles import Role
from veil.formats.service_domain import (
    BLOCK_ENTRY,
    SERVICES_DOMAIN,
    DomainCall,
    ServiceInfo,
    mailbox_and_outbox,
    pack_description,
)
from veil.formats.service_events import RefusedAccess, Report, Verdict
from veil.formats.status import Status
from veil.services.context import (
    Ask,
    Asking,
    GuestMemory,
    KernelPiece,
    LogSpan,
    MonitorClient,
    Recorder,
    ServiceContext,
    ServiceMemory,
)
from veil.services.interface import KernelRequest, Refused, Service, User
from veil.services.parameters import ServiceParameters
from veil.snp.errors import RmpViolation, SnapshotError
from veil.snp.hosted import HostedCpu

if TYPE_CHECKING:
    from veil.snp.view import View

__all__ = ["MAX_ASKS", "ServiceDomain"]

#: How often one request may ask VeilMon. A handler that never ends would keep all others waiting.
MAX_ASKS = 1024
_MAX_MISTAKES = 16
#: by VMPL
_RUN = tuple(map(run_vmpl_request, range(VMPLS)))
#: in place of an answer: there is none, the request stays pending
_GONE = b"the host took the services' memory away"
_REFUSALS = frozenset(Status) - {Status.OK}


@dataclass(slots=True)
class _Request:
    """A request from the moment it is taken until it is answered."""

    asker: int
    """VMPL."""
    vcpu: int
    gpa: int
    size: int
    asked: BlockRequest
    handler: Asking[bytes] | None = None
    """If it waits for VeilMon."""
    asks: int = 0


class ServiceDomain:
    """The program; a subclass names its services, and the image names the subclass."""

    service_types: ClassVar[tuple[type[Service], ...]] = ()

    def __init__(self) -> None:
        self.services = [kind() for kind in self.service_types]
        #: the newest mistakes of services (service, what), for tests and debuggers; neither kernel nor host sees them
        self.mistakes: deque[tuple[str, str]] = deque(maxlen=_MAX_MISTAKES)
        self._by_number = {service.number: service for service in self.services}
        self._guards = {owner: service for service in self.services for owner in service.guards}
        if len(self._guards) != sum(len(service.guards) for service in self.services):
            raise FormatError("two services guard pages of the same owner")
        self._parameters: ServiceParameters | None = None
        self._saved: dict[str, str] | None = None
        self._mailbox = self._outbox = (0, 0)
        self._waiting: _Request | None = None
        self._owed: set[int] = set()
        """VCPUs on which VeilMon waits for an answer that another VCPU has given."""
        self._kernel: list[KernelPiece] = []

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
        if self._waiting is not None:
            raise SnapshotError(
                "a service waits for VeilMon in the middle of a request: run the machine on, then save it"
            )
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
        self._mailbox, self._outbox = mailbox_and_outbox(parameters.mailbox_gpa, parameters.mailbox_size)
        settings, gpa = parameters.settings, parameters.memory_gpa
        kernel = self._kernel = list(_kernel_pieces(cpu.view, parameters))
        shares = self._log_shares(settings)
        for service in self.services:
            mine: dict[str, Any] = settings.get(service.name, {})
            size = service.memory_size(mine)
            if size % PAGE_SIZE or gpa + size > parameters.memory_gpa + parameters.memory_size:
                raise FormatError(f"no memory left for the service {service.name}")
            memory = ServiceMemory(cpu.view, gpa, size)
            service.context = ServiceContext(
                memory, cpu.tsc, GuestMemory(cpu.view), MonitorClient(memory), self._recorder(service), kernel,
                self._log_span, shares,
            )  # fmt: skip
            gpa += size
            if self._saved is None:
                service.start(mine)
            else:
                service.restore(mine, bytes.fromhex(self._saved.get(service.name, "")))

    def _recorder(self, service: Service) -> Recorder:
        def record(word: bytes, /, *, urgent: bool = False) -> None:
            for other in self.services:
                if other.keep_word(service.number, word, urgent=urgent):
                    return

        return record

    def _log_shares(self, settings: Mapping[str, dict[str, Any]]) -> dict[int, float]:
        found = {service.number: service.log_share(settings.get(service.name, {})) for service in self.services}
        return {number: share for number, share in found.items() if share}

    def _log_span(self) -> LogSpan:
        spans = (service.log_span() for service in self.services)
        return next((span for span in spans if span is not None), LogSpan())

    def _serve(self, cpu: HostedCpu) -> Generator[None, None, None]:
        asked_monitor, last = False, KERNEL_VMPL
        idle: list[int] = []
        while True:
            target = self._step(cpu.view, cpu.start_argument, asked_monitor)
            asked_monitor = self._waiting is not None and target == MONITOR_VMPL
            if target is not None:
                idle, last = [], target
                cpu.ghcb_msr = _RUN[target]
            else:
                self._tell_services()
                # A refusal may be an old one, and somebody may have come with a request since.
                idle = idle[1:] if idle and cpu.ghcb_msr == RUN_VMPL_REFUSED else _nobody_asked(last)
                cpu.ghcb_msr = _RUN[idle[0]] if idle else MsrRequest.AP_RESET_HOLD
            yield

    def _tell_services(self) -> None:
        for service in self.services:
            try:
                service.ran()
            except Exception as error:
                # The host took a service's memory away: it will be told so when it is asked. Or it is a mistake.
                self._note_mistake(service.name, error)

    # One step: what is to run next

    def _step(self, view: View, vcpu: int, asked_monitor: bool) -> int | None:
        """Serve what waits on this VCPU; returns the VMPL to run next, None if nobody asked."""
        if vcpu in self._owed:
            # Before the kernel goes on there, about whose access or call the answer may be, and before this domain
            # takes up anything else: what another VCPU has it wait for by now keeps nobody from that answer.
            self._owed.discard(vcpu)
            return MONITOR_VMPL
        asker = None
        if self._waiting is not None:
            answer = read_answer(view, *self._outbox)
            if answer is None:
                # The host has not run VeilMon, or VeilMon waits on another VCPU for something that the host must do.
                # VeilMon, if it waits here for the mailbox, is in no hurry; the kernel must not wait forever.
                return KERNEL_VMPL if asked_monitor and self._mail(view, vcpu) is None else MONITOR_VMPL
            asker = self._go_on(view, vcpu, answer)
            if self._waiting is not None:
                return MONITOR_VMPL
        # VeilMon first: a kernel whose block is always pending must not keep users from their answers.
        if self._mail(view, vcpu) is not None:
            asked = take_request(view, *self._mailbox)
            assert asked is not None
            self._tell_services()
            return self._begin(view, _Request(MONITOR_VMPL, vcpu, *self._mailbox, asked))
        if asker is not None:
            # It waits for the answer; if it is the kernel, it asks anew when it has that.
            return asker
        try:
            gpa, size = self._block(view, vcpu)
            if not gpa:
                return None
            try:
                asked = take_request(view, gpa, size)
            except FormatError:
                write_answer(view, gpa, size, Status.BAD_REQUEST)
                return KERNEL_VMPL
        except RmpViolation:
            # The host took the block away, which it can at any time: other VCPUs run meanwhile.
            return KERNEL_VMPL
        if asked is None:
            return None
        return self._begin(view, _Request(KERNEL_VMPL, vcpu, gpa, size, asked))

    def _mail(self, view: View, vcpu: int) -> int | None:
        """The ticket of the request in the mailbox that VeilMon waits for on this VCPU."""
        waiting = waiting_ticket(view, self._mailbox[0])
        return waiting[1] if waiting is not None and waiting[0] == vcpu else None

    def _block(self, view: View, vcpu: int) -> tuple[int, int]:
        assert self._parameters is not None
        gpa, size = BLOCK_ENTRY.unpack(
            view.read(self._parameters.blocks_gpa + vcpu * BLOCK_ENTRY.size, BLOCK_ENTRY.size)
        )
        return gpa, size

    def _begin(self, view: View, request: _Request) -> int:
        """Call the service; returns the VMPL to run next."""
        outcome = self._outcome(view, request, lambda: self._call(view, request))
        if outcome is None:
            return MONITOR_VMPL
        self._finish(view, request, *outcome)
        return request.asker

    def _go_on(self, view: View, vcpu: int, answer: tuple[Status, bytes]) -> int | None:
        """Give the handler VeilMon's answer. Returns the VMPL that asked, if it waits on this VCPU for the end."""
        request, self._waiting = self._waiting, None
        assert request is not None
        handler = request.handler
        assert handler is not None
        outcome = self._outcome(view, request, lambda: self._advance(view, request, handler, answer))
        if outcome is None:
            return None
        if not self._finish(view, request, *outcome):
            return None
        if request.vcpu == vcpu:
            return request.asker
        if request.asker == MONITOR_VMPL:
            self._owed.add(request.vcpu)
        return None

    def _outcome(self, view: View, request: _Request, work: Callable[[], object]) -> tuple[Status, bytes] | None:
        """What a service says; None while it waits for VeilMon.

        A service's mistake is its own: it must not look like the asker's, nor stop the domain, and with it all others.
        """
        service = self._by_number.get(request.asked.service)
        name = service.name if service is not None else "domain"
        room = request.size - BLOCK_HEADER
        error: Exception
        try:
            body = work()
            if isinstance(body, GeneratorType):
                body = self._advance(view, request, body, None)
            if body is None and request is self._waiting:
                return None
            if not isinstance(body, bytes):
                raise TypeError(f"an answer is bytes, not {type(body).__name__}")
            if len(body) > room:
                raise ValueError(f"an answer of {len(body)} bytes does not fit into a block of {request.size}")
            return Status.OK, body
        except Refused as refusal:
            if refusal.status in _REFUSALS:
                return refusal.status, _shown(refusal, str)[:room]
            error = refusal
        except RmpViolation as violation:
            if request.asker == KERNEL_VMPL and self._owns(violation.gpa):
                # The host took the service's memory away: no mistake. The kernel's request stays pending.
                return Status.UNAVAILABLE, _GONE
            error = violation
        except Exception as mistake:
            error = mistake
        self._note_mistake(name, error)
        # What went wrong inside of a service is for the CVM's owners, and for VeilMon at boot, to read.
        told = request.asker == MONITOR_VMPL and (service is None or request.asked.role == Role.OWNER)
        detail = b": " + _shown(error, repr) if told else b""
        return Status.UNAVAILABLE, (f"the service {name} failed".encode() + detail)[:room]

    def _note_mistake(self, name: str, error: Exception) -> None:
        self.mistakes.append((name, _shown(error, repr).decode()))

    def _owns(self, gpa: int) -> bool:
        parameters = self._parameters
        assert parameters is not None
        return parameters.memory_gpa <= gpa < parameters.memory_gpa + parameters.memory_size

    def _advance(
        self, view: View, request: _Request, handler: Asking[bytes], answer: tuple[Status, bytes] | None
    ) -> bytes | None:
        """The handler's answer; None if it asks VeilMon, which is in the outbox then."""
        try:
            ask = next(handler) if answer is None else handler.send(answer)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        request.asks += 1
        if request.asks > MAX_ASKS:
            handler.close()
            raise RuntimeError(f"a request asked VeilMon more than {MAX_ASKS} times")
        if not isinstance(ask, Ask):
            raise TypeError(f"a handler yields requests to VeilMon, not {type(ask).__name__}")
        write_request(view, *self._outbox, BlockRequest(SERVICES_DOMAIN, ask.call, ask.body, request.vcpu))
        request.handler, self._waiting = handler, request
        return None

    def _finish(self, view: View, request: _Request, status: Status, body: bytes) -> bool:
        """Write the answer, if its asker still waits for it: it may have given up and asked something else since."""
        if body is _GONE:
            return False
        try:
            if request.handler is not None:
                block = self._mailbox if request.asker == MONITOR_VMPL else self._block(view, request.vcpu)
                waiting = waiting_ticket(view, request.gpa) if block == (request.gpa, request.size) else None
                if waiting is None or waiting[1] != request.asked.ticket:
                    return False
            # The kernel's driver looks at the status alone, and finds its own body again if it is not OK.
            kept = status == Status.OK or request.asker == MONITOR_VMPL
            write_answer(view, request.gpa, request.size, status, body if kept else b"")
        except RmpViolation:
            return False
        return True

    # Whom it concerns

    def _call(self, view: View, request: _Request) -> object:
        asked = request.asked
        service = self._by_number.get(asked.service)
        if request.asker == KERNEL_VMPL:
            if service is None:
                raise Refused(Status.UNKNOWN_SERVICE, f"there is no service {asked.service}")
            return service.kernel_request(KernelRequest(request.vcpu, asked.call, asked.body, asked.pages))
        if asked.service == SERVICES_DOMAIN:
            return self._answer_monitor(view, asked)
        if service is None:
            raise Refused(Status.UNKNOWN_SERVICE, f"there is no service {asked.service}")
        return service.answer_user(User(asked.user_key, asked.role), asked.call, asked.body)

    def _answer_monitor(self, view: View, asked: BlockRequest) -> bytes | Asking[bytes]:
        if asked.call == DomainCall.DESCRIBE:
            return self._describe()
        if asked.call == DomainCall.HEAR:
            return self._hear(Report.parse(asked.body))
        if asked.call == DomainCall.ACCESS_REFUSED:
            access = RefusedAccess.parse(asked.body)
            # What VMPL 3 may do by now it was refused while a page changed hands in the request before this one: the
            # code of a module that was loaded before lock-down, while that looked at it.
            needed = needed_permission(access.info, access.registers.cpl)
            if view.lower(KERNEL_VMPL).allows(access.gpa, needed):
                return access.resume().pack()
            return self._guard(self._guards[access.owner], access)
        raise Refused(Status.UNKNOWN_CALL, f"the services' domain has no call {asked.call}")

    def _describe(self) -> Asking[bytes]:
        """VeilMon asks once, at boot. The kernel has not run yet: it is as it was measured."""
        for piece in self._kernel:
            pages = range(piece.gpa, piece.gpa + piece.copy.size, PAGE_SIZE)
            yield from MonitorClient(piece.copy).copy_in(pages, piece.copy.size, 0)
        return pack_description(
            ServiceInfo(service.name, service.number, service.guid, service.manifest(), service.hears, service.guards)
            for service in self.services
        )

    def _hear(self, report: Report) -> bytes:
        for service in self.services:
            events = [item for item in report.events if item.event in service.hears]
            if not events and not (report.lost and service.hears):
                continue
            try:
                answer: object = service.heard(Report(events, report.lost))  # type: ignore[func-returns-value]
                if answer is not None:
                    # A generator, most likely: nobody would run it.
                    raise TypeError(f"`heard` returns nothing and cannot ask VeilMon, but gave {type(answer).__name__}")
            except Exception as mistake:
                # The others must hear it all the same, and the kernel's call is done.
                self._note_mistake(service.name, mistake)
        return b""

    def _guard(self, service: Service, access: RefusedAccess) -> Asking[bytes]:
        try:
            verdict = service.access_refused(access)
            if isinstance(verdict, GeneratorType):
                verdict = yield from verdict
            if not isinstance(verdict, Verdict):
                raise TypeError(f"a verdict is a Verdict, not {type(verdict).__name__}")
            return verdict.pack()
        except Exception as mistake:
            # The VCPU is stopped: who cannot decide must not let it go on.
            self._note_mistake(service.name, mistake)
            return Verdict.refuse().pack()


def _nobody_asked(last: int) -> list[int]:
    """Whom to run then, after `last` was run.

    VeilMon may wait on this VCPU for an answer that another VCPU gave meanwhile. It must have it before the kernel
    goes on there, whose refused access the answer may be about; and before there is a kernel.
    """
    return [MONITOR_VMPL, KERNEL_VMPL] if last == MONITOR_VMPL else [KERNEL_VMPL, MONITOR_VMPL]


def _kernel_pieces(view: View, parameters: ServiceParameters) -> Iterator[KernelPiece]:
    at = parameters.kernel_copy_gpa
    for segment in parameters.kernel:
        yield KernelPiece(segment.virtual, segment.gpa, ServiceMemory(view, at, segment.size))
        at += -(-segment.size // PAGE_SIZE) * PAGE_SIZE


def _shown(error: Exception, how: Callable[[Exception], str]) -> bytes:
    """What an exception says. It may be of a service's own class, and its text may hold what is not valid Unicode."""
    try:
        return how(error).encode(errors="backslashreplace")
    except Exception:
        return f"{type(error).__name__}, which cannot be shown".encode(errors="backslashreplace")
