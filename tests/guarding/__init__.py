# SPDX-License-Identifier: GPL-2.0-or-later
"""A service that keeps pages of the kernel's from being written, for tests: it decides each store that is refused."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from veil.formats.nested_faults import NestedFault
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Call, Role
from veil.formats.service_events import Event, RefusedAccess, Report, Verdict
from veil.services import Asking, KernelRequest, Service, ServiceDomain, UserHandler
from veil.services.log import LogService

__all__ = ["ALLOW", "HEARD", "MEMORY", "PROTECT", "RELEASE", "Guard", "Services", "WithLog"]

#: calls of users and of the kernel alike
PROTECT, RELEASE, ALLOW, HEARD = range(4)
#: bytes: the numbers, then 12 for each event heard
MEMORY = 16 * PAGE_SIZE

_STATE = struct.Struct("<II")
_STORE_RAX_TO_RDI = bytes.fromhex("488907")
_REP_MOVSB = bytes.fromhex("f3a4")
_RAX, _RCX, _RSI, _RDI = 0, 1, 6, 7


class Guard(Service):
    """PROTECT (u64 GPAs): the pages become code. ALLOW (u8): so many stores more go through.

    A store of RAX to [RDI] and REP MOVSB are carried out while some are allowed, and stop the VCPU afterwards; any
    other instruction gets #GP.
    """

    name = "guard"
    number = 40
    guid = uuid.UUID("eeeeeeee-0000-4000-8000-000000000040")
    hears = frozenset(Event)
    guards = frozenset({Owner.KERNEL_CODE})

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        return MEMORY

    def kernel_request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        return self._serve(request.call, request.body)

    def _serve(self, call: int, body: bytes) -> bytes | Asking[bytes]:
        if call == ALLOW:
            self._set(allowed=body[0])
            return b""
        if call == HEARD:
            count = self._state()[1]
            return self.memory.read(_STATE.size, count * 12)
        return self._move(call, [(gpa, PAGE_SIZE) for (gpa,) in struct.iter_unpack("<Q", body)])

    def _move(self, call: int, ranges: list[tuple[int, int]]) -> Asking[bytes]:
        owners = (Owner.KERNEL, Owner.KERNEL_CODE) if call == PROTECT else (Owner.KERNEL_CODE, Owner.KERNEL)
        yield from self.context.monitor.move(ranges, *owners)
        return b""

    def _state(self) -> tuple[int, int]:
        allowed, count = _STATE.unpack(self.memory.read(0, _STATE.size))
        return allowed, count

    def _set(self, *, allowed: int | None = None, count: int | None = None) -> None:
        old = self._state()
        self.memory.write(0, _STATE.pack(old[0] if allowed is None else allowed, old[1] if count is None else count))

    def heard(self, report: Report) -> None:
        for event in report.events:
            count = self._state()[1]
            if _STATE.size + (count + 1) * 12 <= MEMORY:
                self.memory.write(_STATE.size + count * 12, struct.pack("<HHQ", event.event, event.vcpu, event.gpa))
                self._set(count=count + 1)

    def access_refused(self, access: RefusedAccess) -> Verdict | Asking[Verdict]:
        if access.access != NestedFault.WRITE | NestedFault.FINAL:
            return Verdict.refuse()
        return self._decide(access)

    def _decide(self, access: RefusedAccess) -> Asking[Verdict]:
        registers, monitor = access.registers, self.context.monitor
        gprs = list(registers.gprs)
        code = yield from monitor.read_virtual(access.vcpu, registers.rip, 3)
        allowed = self._state()[0]
        if code == _STORE_RAX_TO_RDI and allowed and access.gpa % PAGE_SIZE <= PAGE_SIZE - 8:
            self._set(allowed=allowed - 1)
            self.context.guest.write(access.gpa, struct.pack("<Q", gprs[_RAX]))
            return access.resume(rip=registers.rip + len(_STORE_RAX_TO_RDI))
        if code.startswith(_REP_MOVSB) and allowed:
            self._set(allowed=allowed - 1)
            length = min(gprs[_RCX], PAGE_SIZE - access.gpa % PAGE_SIZE)
            self.context.guest.write(access.gpa, (yield from monitor.read_virtual(access.vcpu, gprs[_RSI], length)))
            for register, change in ((_RCX, -length), (_RSI, length), (_RDI, length)):
                gprs[register] += change
            done = not gprs[_RCX]
            return access.resume(gprs=tuple(gprs), rip=registers.rip + (len(_REP_MOVSB) if done else 0))
        if code == _STORE_RAX_TO_RDI or code.startswith(_REP_MOVSB):
            return Verdict.refuse()
        return Verdict.inject()

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        call: Call(Role.ANYONE, lambda self, user, body, call=call: self._serve(call, body))  # type: ignore[misc]
        for call in (PROTECT, RELEASE, ALLOW, HEARD)
    }


class Services(ServiceDomain):
    """The guard alone."""

    service_types = (Guard,)


class WithLog(ServiceDomain):
    """With the log, which a stock guest's driver talks to."""

    service_types = (LogService, Guard)
