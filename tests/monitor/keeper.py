# SPDX-License-Identifier: GPL-2.0-or-later
"""A service that asks VeilMon for whatever it is told to, and makes every mistake."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from tests.monitor.harness import MAILBOX_SIZE, MONITOR, PAGE
from veil.formats.domains import Domain
from veil.formats.roles import Call, Role
from veil.formats.service_domain import Change
from veil.formats.status import Status
from veil.monitor import Owner
from veil.services import Asking, KernelRequest, MonitorRefused, Refused, Service, ServiceDomain, UserHandler
from veil.snp.rmp import Permission

__all__ = [
    "CHANGE",
    "COPY",
    "COPY_AND_MOVE",
    "ENDLESS",
    "LATE",
    "MISTAKES",
    "MOVE",
    "NOT_AN_ASK",
    "NOT_A_STATUS",
    "NOT_BYTES",
    "NOT_TEXT",
    "NUMBER",
    "PAGES",
    "PEEK",
    "POKE",
    "RAISE",
    "REACH",
    "RESTRICT",
    "TOO_LONG",
    "UNSPEAKABLE",
    "Keeper",
    "Services",
    "moved",
]

MOVE, COPY, RESTRICT, POKE, PEEK, CHANGE, COPY_AND_MOVE = range(7)
TOO_LONG, RAISE, NOT_BYTES, NOT_AN_ASK, ENDLESS, LATE, REACH, NOT_A_STATUS, UNSPEAKABLE, NOT_TEXT = range(10, 20)
MISTAKES = range(TOO_LONG, UNSPEAKABLE + 1)
NUMBER = 9
PAGES = 8


class Unspeakable(Exception):
    """One that cannot be shown."""

    def __repr__(self) -> str:
        raise KeyError


class Keeper(Service):
    """Does whatever it is asked: for tests only."""

    name = "keeper"
    number = NUMBER
    guid = uuid.UUID("eeeeeeee-0000-4000-8000-000000000009")

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        return PAGES * PAGE

    def kernel_request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        return self._serve(request.call, request.body, request.pages)

    def _serve(self, call: int, body: bytes, pages: tuple[int, ...] = ()) -> bytes | Asking[bytes]:
        if call == TOO_LONG:
            return bytes(MAILBOX_SIZE)
        if call == RAISE:
            raise KeyError("a secret")
        if call == NOT_BYTES:
            return None  # type: ignore[return-value]
        if call == NOT_TEXT:
            raise Refused(Status.BAD_REQUEST, f"no such file: {os.fsdecode(bytes((0xFF,)))}")
        if call == NOT_A_STATUS:
            raise Refused(77, "")  # type: ignore[arg-type]
        if call == UNSPEAKABLE:
            raise Unspeakable
        if call == REACH:
            return self.context.guest.read(MONITOR, 8)
        if call == POKE:
            self.context.guest.write(struct.unpack("<Q", body)[0], b"patched")
            return b""
        if call == PEEK:
            return self.context.guest.read(struct.unpack("<Q", body)[0], 8)
        return self._wait(call, body, pages)

    def _wait(self, call: int, body: bytes, pages: tuple[int, ...]) -> Asking[bytes]:
        monitor = self.context.monitor
        try:
            if call == MOVE:
                source, target, *numbers = struct.unpack(f"<HH{(len(body) - 4) // 8}Q", body)
                yield from monitor.move([(gpa, PAGE) for gpa in numbers], Owner(source), Owner(target))
            elif call == CHANGE:
                some = struct.iter_unpack("<HHQ", body)
                yield from monitor.change([Change(Owner(old), Owner(new), [(gpa, PAGE)]) for old, new, gpa in some])
            elif call == COPY_AND_MOVE:
                length, gpa = struct.unpack("<IQ", body)
                change = Change(Owner.KERNEL, Owner.KERNEL_CODE, [(gpa, PAGE)])
                yield from monitor.copy_and_change(pages, length, 0, [change])
                return self.memory.read(0, length)
            elif call == COPY:
                (length,) = struct.unpack("<I", body)
                yield from monitor.copy_in(pages, length, 0)
                return self.memory.read(0, length)
            elif call == RESTRICT:
                owner, keep = body
                yield from monitor.restrict(Owner(owner), Domain.UNT, Permission(keep))
            elif call == NOT_AN_ASK:
                yield 5  # type: ignore[misc]
            elif call == ENDLESS:
                while True:
                    yield from monitor.restrict(Owner.KERNEL, Domain.UNT, Permission.ALL)
            elif call == LATE:
                yield from monitor.restrict(Owner.KERNEL, Domain.UNT, Permission.ALL)
                raise KeyError("a secret")
        except MonitorRefused as refused:
            return b"refused " + refused.status.name.encode()
        return b"done"

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        call: Call(Role.ANYONE, lambda self, user, body, call=call: self._serve(call, body))  # type: ignore[misc]
        for call in (RESTRICT, *MISTAKES, NOT_TEXT)
    }


class Services(ServiceDomain):
    service_types = (Keeper,)


def moved(*pages: int, source: Owner = Owner.KERNEL, target: Owner = Owner.KERNEL_CODE) -> bytes:
    """The body of MOVE."""
    return struct.pack(f"<HH{len(pages)}Q", source, target, *pages)
