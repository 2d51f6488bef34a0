# SPDX-License-Identifier: GPL-2.0-or-later
"""The log's real service without a machine around it: memory that is a bytearray, a clock by hand, users who call."""

from __future__ import annotations

import hashlib
from typing import Any

from veil.formats.log import AuditRecord, KernelCall, pack_records
from veil.formats.roles import Role
from veil.formats.status import Status
from veil.remote.channel.client import RequestFailed
from veil.remote.log.reader import LogReader, LogState
from veil.services import KernelRequest, Refused, ServiceContext, User
from veil.services.log import LogService

__all__ = ["Client", "Desk", "event"]

_NS = 1_000_000_000
BOOT_MS = 1_700_000_000_000


class Memory:
    """A service's memory that is a bytearray."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data


class Desk:
    """One log of one launch. `now` is the machine's time in nanoseconds."""

    def __init__(self, memory: int = 64 << 10, full: str = "halt") -> None:
        self.settings = {"memory": memory, "full": full}
        self.now = _NS
        self.service = self._new()
        self.service.start(self.settings)

    def _new(self) -> LogService:
        service = LogService()
        memory: Any = Memory(LogService.memory_size(self.settings))
        unused: Any = None
        service.context = ServiceContext(memory, lambda: self.now, unused, unused)
        return service

    def kernel(self, call: KernelCall, body: bytes, *, after: int = 1_000_000) -> Status:
        """As the driver does."""
        self.now += after
        try:
            self.service.kernel_request(KernelRequest(0, call, body))
        except Refused as refused:
            return refused.status
        return Status.OK

    def log(self, number: int) -> Status:
        """An event with this number."""
        return self.kernel(KernelCall.RECORDS, event(number, BOOT_MS + (self.now + 1_000_000) // 1_000_000))

    def save(self) -> tuple[bytes, bytes, int]:
        """A snapshot."""
        return self.service.save(), bytes(self.service.memory.data), self.now  # type: ignore[attr-defined]

    def restore(self, snapshot: tuple[bytes, bytes, int]) -> None:
        """The machine as it was."""
        data, memory, self.now = snapshot
        self.service = self._new()
        self.service.memory.data[:] = memory  # type: ignore[attr-defined]
        self.service.restore(self.settings, data)

    def reader(self, known: LogState | None = None, client: Any = None) -> LogReader:
        """A user's, an owner's."""
        asks: Any = client or Client(self)
        return LogReader(asks, self.service.manifest(), known=known)


class Client:
    """Stands in for an attested channel, of which only the requests matter."""

    def __init__(self, desk: Desk, role: Role = Role.OWNER) -> None:
        self._desk = desk
        self._user = User(hashlib.sha256(b"key").digest(), role)

    def request(self, service: Any, call: int, body: bytes = b"") -> bytes:
        """As `ChannelClient.request`."""
        try:
            answer = self._desk.service.answer_user(self._user, call, body)
            assert isinstance(answer, bytes)
            return answer
        except Refused as refused:
            raise RequestFailed(refused.status, str(refused)) from None


def event(number: int, ms: int = BOOT_MS) -> bytes:
    """The records of one system call."""
    stamp = b"audit(%d.%03d:%d): " % (ms // 1000, ms % 1000, number)
    texts = (1300, b"arch=c000003e syscall=59 success=yes"), (1307, b'cwd="/root"'), (1320, b"")
    return pack_records([AuditRecord(kind, stamp + text) for kind, text in texts])
