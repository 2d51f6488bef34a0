# SPDX-License-Identifier: GPL-2.0-or-later
"""A service that answers with what it was asked."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from tests.monitor.harness import PAGE
from veil.formats.roles import Call, Role
from veil.formats.status import Status
from veil.services import KernelRequest, Refused, Service, ServiceDomain, UserHandler


class Echo(Service):
    """Answers with what it was asked, and counts in its memory."""

    name = "echo"
    number = 7
    guid = uuid.UUID("eeeeeeee-0000-4000-8000-000000000007")

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        return int(settings.get("pages", 1)) * PAGE

    def kernel_request(self, request: KernelRequest) -> bytes:
        if request.call == 1:
            raise Refused(Status.FULL, "no room")
        (count,) = struct.unpack("<Q", self.memory.read(0, 8))
        self.memory.write(0, struct.pack("<Q", count + 1))
        return bytes((request.vcpu,)) + request.body

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        0: Call(Role.ANYONE, lambda self, user, body: body),
        1: Call(Role.ANYONE, lambda self, user, body: self.memory.read(0, 8)),
    }

    def manifest(self) -> bytes:
        return b"it echoes"


class Services(ServiceDomain):
    service_types = (Echo,)
