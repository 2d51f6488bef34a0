# SPDX-License-Identifier: GPL-2.0-or-later
"""A service that reads what pages by reference hold, for tests. The kernel module beside it asks it."""

from __future__ import annotations

import hashlib
import struct
import uuid
from typing import Any

from veil.services import Asking, KernelRequest, MonitorRefused, Refused, Service, ServiceDomain

__all__ = ["PageReader", "Services"]


class PageReader(Service):
    """Its one call: u32 bytes, and the pages that hold them -> their SHA-256."""

    name = "page-reader"
    number = 9
    guid = uuid.UUID("eeeeeeee-0000-4000-8000-000000000010")

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        return 32 << 20

    def kernel_request(self, request: KernelRequest) -> Asking[bytes]:
        return self._read(request)

    def _read(self, request: KernelRequest) -> Asking[bytes]:
        (length,) = struct.unpack("<I", request.body)
        try:
            yield from self.context.monitor.copy_in(request.pages, length, 0)
        except MonitorRefused as refused:
            raise Refused(refused.status, str(refused)) from refused
        return hashlib.sha256(self.memory.read(0, length)).digest()


class Services(ServiceDomain):
    """The domain with this service alone."""

    service_types = (PageReader,)
