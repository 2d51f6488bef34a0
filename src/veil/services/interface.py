# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of a protected service: whom it answers, the memory it owns, what it adds to attestation.

docs/writing-a-service.md shows one from end to end.
"""

from __future__ import annotations

import abc
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias, final

from veil.formats.page_owners import Owner
from veil.formats.roles import Call, User, admit
from veil.formats.service_events import Event, RefusedAccess, Report, Verdict
from veil.formats.service_settings import ServiceSettings
from veil.formats.status import Refused, Status
from veil.services.context import Asking, LogSpan, ServiceContext, ServiceMemory

__all__ = ["KernelRequest", "Refused", "Service", "User", "UserHandler"]


#: A method: service, user, body -> answer, or a generator if VeilMon is needed for it.
UserHandler: TypeAlias = Callable[[Any, User, bytes], bytes | Asking[bytes]]


class KernelRequest(NamedTuple):
    """A request of the kernel's, which is not trusted: every byte is its choice. It is a copy."""

    vcpu: int
    call: int
    body: bytes
    pages: tuple[int, ...] = ()
    """GPAs of pages that it names by reference: page aligned, none twice. Nobody has looked up whose they are; VeilMon
    does that in `context.monitor.copy_in`."""


class Service(abc.ABC):
    """A protected service. One object for the machine; requests come one at a time."""

    name: ClassVar[str]
    number: ClassVar[int]
    """By which the kernel calls it, 1 to 65535."""
    guid: ClassVar[uuid.UUID]
    """By which remote users call it, and under which its manifest stands in attestation."""

    settings_type: ClassVar[type[ServiceSettings]] = ServiceSettings
    """What a launch decides about it."""

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {}
    """The calls of remote users: who may make each, and the method that answers it or raises Refused. What is not here
    nobody may ask."""

    hears: ClassVar[frozenset[Event]] = frozenset()
    """What `heard` is told of. It is measured with the class, and VeilMon learns it at boot."""

    guards: ClassVar[frozenset[Owner]] = frozenset()
    """Owners of pages: an access of VMPL 3 that the RMP refuses there is for `access_refused`. One service an owner."""

    context: ServiceContext
    """What the service has at hand. Set before `start` and before `restore`."""

    @property
    def memory(self) -> ServiceMemory:
        """The service's own memory, zero at first."""
        return self.context.memory

    def now(self) -> int:
        """The machine's time stamp counter in nanoseconds."""
        return self.context.now()

    def nonce(self) -> bytes:
        """32 random bytes."""
        return self.context.nonce()

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        """Bytes of memory that it needs with these (measured) settings, whole pages. Raises FormatError."""
        return cls.settings_type.of(settings).memory_size

    @classmethod
    def log_share(cls, settings: dict[str, Any]) -> float:
        """What of the protected log's memory is for this service's own entries, whatever else there is to be told."""
        return 0.0

    def start(self, settings: dict[str, Any]) -> None:  # noqa: B027
        """Called once at boot, before the kernel runs; `settings` are measured."""

    def kernel_request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        """Answer the kernel, or raise Refused. A generator is an answer that VeilMon is needed for."""
        raise Refused(Status.UNKNOWN_CALL, f"the service {self.name} has no call {request.call} for the kernel")

    @final
    def answer_user(self, user: User, call: int, body: bytes) -> bytes | Asking[bytes]:
        """Answer a request that came over the secure channel, by `user_calls`, or raise Refused."""
        return admit(self.user_calls, call, user.role, f"the service {self.name}")(self, user, body)

    def heard(self, report: Report) -> None:  # noqa: B027
        """VeilMon did this for the kernel, which waits: events of the kinds in `hears`, in their order.

        All that one call of the kernel's brought about comes at once. `report.lost` counts those for which VeilMon had
        no room, of any kind: what the service knows of them is not whole any more. It cannot ask VeilMon, which waits
        for it.
        """

    def access_refused(self, access: RefusedAccess) -> Verdict | Asking[Verdict]:
        """A VCPU of the kernel stands still at an access that the RMP refused: what becomes of it?

        What is asked is true: VeilMon read it from the VMSA. A mistake here, too, stops the VCPU for good.
        """
        return Verdict.refuse()

    def keep_word(self, service: int, word: bytes, *, urgent: bool = False) -> bool:
        """Keep what another service has to say (`ServiceContext.record`); False if this one keeps nothing."""
        return False

    def log_span(self) -> LogSpan | None:
        """How far what `keep_word` keeps has come; None if this service keeps nothing."""
        return None

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
