# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI whose driver is the test: what the kernel may ask, users may ask here."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import ClassVar

from veil.formats.kci import KernelCall
from veil.formats.roles import Call, Role
from veil.services import Asking, KernelRequest, ServiceDomain, User, UserHandler
from veil.services.kci.service import KciService
from veil.services.log import LogService

__all__ = ["ASK", "Locker", "Services", "ask"]

#: u32 the kernel's call, u32 number of pages, their GPAs, the request's body
ASK = 100
_ASK = struct.Struct("<II")


class Locker(KciService):
    """Does for anyone what it does for the kernel."""

    def _ask(self, user: User, body: bytes) -> bytes | Asking[bytes]:
        call, count = _ASK.unpack_from(body)
        end = _ASK.size + 8 * count
        pages = struct.unpack(f"<{count}Q", body[_ASK.size : end])
        return self.kernel_request(KernelRequest(0, call, body[end:], pages))

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        **{number: Call(Role.ANYONE, call.handler) for number, call in KciService.user_calls.items()},
        ASK: Call(Role.ANYONE, _ask),
    }


class Services(ServiceDomain):
    """With the log, which keeps its words."""

    service_types = (LogService, Locker)


def ask(call: KernelCall, body: bytes = b"", pages: tuple[int, ...] = ()) -> bytes:
    """What ASK takes."""
    return _ASK.pack(call, len(pages)) + struct.pack(f"<{len(pages)}Q", *pages) + body
