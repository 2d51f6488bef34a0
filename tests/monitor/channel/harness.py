# SPDX-License-Identifier: GPL-2.0-or-later
"""A service with a call of each kind, its owner, and users who connect."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import ClassVar

from tests.monitor.harness import Bench
from tests.monitor.wire import Wire
from veil.formats.roles import Call, Role
from veil.remote.channel.client import ChannelClient
from veil.remote.channel.identity import UserKey
from veil.services import Service, ServiceDomain, User, UserHandler

OWNER = UserKey.generate()


class Diary(Service):
    """Owners write, everybody reads."""

    name = "diary"
    number = 16
    guid = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000001")

    def __init__(self) -> None:
        self.pages: list[bytes] = []

    def _read(self, user: User, body: bytes) -> bytes:
        return b"\n".join(self.pages)

    def _write(self, user: User, body: bytes) -> bytes:
        self.pages.append(body)
        return b""

    def _fail(self, user: User, body: bytes) -> bytes:
        raise ZeroDivisionError("a mistake")

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        0: Call(Role.ANYONE, _read),
        1: Call(Role.OWNER, _write),
        2: Call(Role.ANYONE, _fail),
    }


class Services(ServiceDomain):
    service_types = (Diary,)


def user(bench: Bench, identity: UserKey | None = None) -> ChannelClient:
    return ChannelClient(Wire(bench), identity=identity)
