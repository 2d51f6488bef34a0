# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon's way to the protected services at VMPL 1: the mailbox, and a domain switch on the same VCPU."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from veil.formats.errors import FormatError
from veil.formats.request_block import BLOCK_HEADER, BlockRequest, read_answer, write_request
from veil.formats.status import Status

if TYPE_CHECKING:
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.parameters import MonitorParameters
    from veil.snp.view import View

__all__ = ["ServiceDomain", "ServiceInfo", "ServicesUnavailable"]

_SERVICE_VMPL = 1
_DOMAIN, _DESCRIBE = 0, 0
_TRIES = 64


class ServicesUnavailable(Exception):
    """The services' domain did not answer; one line why."""


@dataclass(frozen=True)
class ServiceInfo:
    """A service as it described itself at boot."""

    name: str
    number: int
    guid: uuid.UUID
    manifest: bytes

    def dump(self) -> dict[str, Any]:
        """For a snapshot."""
        return {"name": self.name, "number": self.number, "guid": str(self.guid), "manifest": self.manifest.hex()}

    @classmethod
    def load(cls, state: dict[str, Any]) -> ServiceInfo:
        """From a snapshot, or as the domain describes it."""
        return cls(state["name"], state["number"], uuid.UUID(state["guid"]), bytes.fromhex(state["manifest"]))


class ServiceDomain:
    """One request at a time, from whichever VCPU VeilMon runs on."""

    def __init__(self, view: View, parameters: MonitorParameters) -> None:
        self._view = view
        self._mailbox, self._size = parameters.mailbox_gpa, parameters.mailbox_size

    @property
    def room(self) -> int:
        """Bytes that a request or an answer may have."""
        return self._size - BLOCK_HEADER

    def describe(self, host: Ghcb) -> Generator[None, None, list[ServiceInfo]]:
        """Who there is. The first request starts the domain."""
        status, body = yield from self.request(host, 0, BlockRequest(_DOMAIN, _DESCRIBE, b""))
        if status != Status.OK:
            raise ServicesUnavailable(f"the services do not say who they are: {status.name}")
        return [ServiceInfo.load(item) for item in json.loads(body)]

    def request(self, host: Ghcb, vcpu: int, request: BlockRequest) -> Generator[None, None, tuple[Status, bytes]]:
        """Ask and wait. Raises ServicesUnavailable if the host does not let the domain run."""
        asked = BlockRequest(request.service, request.call, request.body, vcpu, request.user_key, request.role)
        try:
            write_request(self._view, self._mailbox, self._size, asked)
            for _ in range(_TRIES):
                if not (yield from host.run_vmpl(_SERVICE_VMPL)):
                    break
                answer = read_answer(self._view, self._mailbox, self._size)
                if answer is not None:
                    return answer
        except FormatError as error:
            raise ServicesUnavailable(str(error)) from error
        # It must not be served at some later time, when somebody else waits for an answer.
        self._view.write_u32(self._mailbox, 0)
        raise ServicesUnavailable("the host does not run the services' domain")
