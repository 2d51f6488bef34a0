# SPDX-License-Identifier: GPL-2.0-or-later
"""In VeilS-KCI's place a service that keeps what the driver tells of modules, for tests, and refuses what they say."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from veil.formats.kci import FILE_PART, KCI_GUID, KCI_NAME, KCI_NUMBER, FilePart, KernelCall, ModulePrepared
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Call, Role
from veil.formats.status import Status
from veil.services import (
    Asking,
    KernelRequest,
    MonitorRefused,
    Refused,
    Service,
    ServiceDomain,
    User,
    UserHandler,
)
from veil.services.log import LogService

__all__ = ["MEMORY", "REFUSE", "TEXT", "TOLD", "ModuleWatcher", "Services"]

#: calls of users: SHA-256s of files to refuse, in hex, or names of calls, in JSON; nothing -> what was told since;
#: offset -> a page of the text of the module that was prepared last, at that time, in hex
REFUSE, TOLD, TEXT = range(3)
_FILE = 24 << 20
MEMORY = _FILE + (32 << 20)


class ModuleWatcher(Service):
    """Keeps each call. Numbers of modules begin with 100."""

    name = KCI_NAME
    number = KCI_NUMBER
    guid = KCI_GUID
    always_refused: ClassVar[AbstractSet[str]] = frozenset()
    """Names of calls, for tests that have it refuse during the boot."""

    def __init__(self) -> None:
        self._told: list[dict[str, Any]] = []
        self._refused: list[str] = []
        self._pieces: list[tuple[int, int]] = []
        self._length = 0
        self._next = 100

    @classmethod
    def memory_size(cls, settings: dict[str, Any]) -> int:
        return MEMORY

    def kernel_request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        if request.call == KernelCall.MODULE_FILE:
            return self._file(request)
        if request.call == KernelCall.MODULE_PREPARED:
            return self._prepared(request)
        return self._other(request)

    def _file(self, request: KernelRequest) -> Asking[bytes]:
        yield from self._piece(FilePart.parse(request.body), request.pages)
        return b""

    def _piece(self, file: FilePart, pages: tuple[int, ...]) -> Asking[None]:
        length, offset = file
        if offset == 0:
            self._pieces, self._length = [], length
        part = min(length - offset, len(pages) * PAGE_SIZE)
        if length > _FILE or length != self._length or len(pages) != -(-part // PAGE_SIZE):
            raise Refused(Status.BAD_REQUEST, "pieces of different files, or not of a file")
        yield from self._copy(pages, part, offset)
        self._pieces.append((offset, part))

    def _copy(self, pages: tuple[int, ...], length: int, at: int) -> Asking[None]:
        try:
            yield from self.context.monitor.copy_in(pages, length, at)
        except MonitorRefused as refused:
            raise Refused(refused.status, str(refused)) from refused

    def _prepared(self, request: KernelRequest) -> Asking[bytes]:
        rest = FilePart.parse(request.body[: FILE_PART.size])
        prepared = ModulePrepared.parse(request.body[FILE_PART.size :])
        yield from self._piece(rest, request.pages[: rest.pages])
        pages = request.pages[rest.pages :]
        yield from self._copy(pages, len(pages) * PAGE_SIZE, _FILE)
        at, digests = _FILE, {}
        for kind, place in sorted(prepared.memory.items()):
            digests[kind.name] = hashlib.sha256(self.memory.read(at, place.size)).hexdigest()
            at += place.size
        file = hashlib.sha256(self.memory.read(0, self._length)).hexdigest()
        self._tell(
            request,
            file=file,
            pieces=self._pieces,
            memory={kind.name: (place.address, place.size) for kind, place in prepared.memory.items()},
            digests=digests,
            module=self._next,
            all_pages=at == _FILE + len(pages) * PAGE_SIZE,
        )
        if self._refuses(file, KernelCall.MODULE_PREPARED.name):
            raise Refused(Status.NOT_ALLOWED, "as the test says")
        self._next += 1
        return struct.pack("<I", self._next - 1)

    def _other(self, request: KernelRequest) -> bytes:
        numbers = struct.unpack(f"<{len(request.body) // 4}I", request.body)
        self._tell(request, module=numbers[0] if numbers else None)
        if self._refuses(KernelCall(request.call).name):
            raise Refused(Status.NOT_ALLOWED, "as the test says")
        return b""

    def _refuses(self, *names: str) -> bool:
        return not {*self._refused, *self.always_refused}.isdisjoint(names)

    def _tell(self, request: KernelRequest, **more: Any) -> None:
        self._told.append({"call": KernelCall(request.call).name, "vcpu": request.vcpu, **more})

    def save(self) -> bytes:
        return json.dumps([self._told, self._refused, self._next]).encode()

    def restore(self, settings: dict[str, Any], data: bytes) -> None:
        self._told, self._refused, self._next = json.loads(data)

    def _say(self, user: User, body: bytes) -> bytes:
        told, self._told = self._told, []
        return json.dumps(told).encode()

    def _refuse(self, user: User, body: bytes) -> bytes:
        self._refused = json.loads(body)
        return b""

    def _last_text(self, user: User, body: bytes) -> bytes:
        return json.dumps(self.memory.read(_FILE + json.loads(body), PAGE_SIZE).hex()).encode()

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        REFUSE: Call(Role.ANYONE, _refuse),
        TOLD: Call(Role.ANYONE, _say),
        TEXT: Call(Role.ANYONE, _last_text),
    }


class Services(ServiceDomain):
    """With the log, which a stock guest's driver talks to."""

    service_types = (LogService, ModuleWatcher)
