# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC: what the kernel and remote users ask, and what becomes of enclaves over a snapshot."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from veil.formats.enclave_calls import (
    CONTENT_PAGES,
    ENC_GUID,
    ENC_NUMBER,
    PAGE_MISSING,
    PAGES_MISSING,
    RELEASED_PAGES,
    AddContent,
    Created,
    EnclaveCall,
    Finished,
    Reclaim,
    Reclaimed,
    Released,
    Return,
)
from veil.formats.enclave_reports import (
    ATTEST_CALL,
    EnclaveManifest,
    EnclaveStatus,
    EnclaveUserCall,
    Provision,
    Speaker,
    pack_enclaves,
)
from veil.formats.enclave_settings import OFF, EncSettings
from veil.formats.enclaves import Layout
from veil.formats.errors import FormatError
from veil.formats.roles import Call, Role
from veil.formats.status import Status
from veil.formats.tsc import TSC_KHZ
from veil.services.context import Asking, MonitorRefused
from veil.services.enc import mailbox
from veil.services.enc.enclave import Enclave, State, pages_needed
from veil.services.enc.errors import EnclaveError, NeedsPages, NoFrames
from veil.services.enc.keys import EnclaveKeys
from veil.services.enc.ledger import EnclaveLedger
from veil.services.interface import KernelRequest, Refused, Service, User, UserHandler
from veil.snp.errors import RmpViolation

__all__ = ["EncService"]

_ONE = struct.Struct("<I")
_TWO = struct.Struct("<II")


class EncService(Service):
    """Any number of enclaves, each made by a process through the driver; the kernel is trusted with none of it."""

    name = "enc"
    number = ENC_NUMBER
    guid: ClassVar[uuid.UUID] = ENC_GUID
    settings_type = EncSettings

    @classmethod
    def log_share(cls, settings: dict[str, Any]) -> float:
        """Of enclaves, if there can be any."""
        return EncSettings.of(settings).log_share

    def start(self, settings: dict[str, Any]) -> None:
        """No enclave yet."""
        self._settings = EncSettings.of(settings)
        self._keys = EnclaveKeys.generate()
        self._ledger = EnclaveLedger(self.context.record, self.context.log, self._keys.has_secrets)
        self._enclaves: dict[int, Enclave] = {}
        self._next = 1
        self._cpuid: bytes | None = None

    # The kernel

    def kernel_request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        """What the driver asks (`EnclaveCall`)."""
        if self._settings.mode == OFF:
            raise Refused(Status.NOT_ALLOWED, "this CVM was launched without enclaves")
        handler = _CALLS.get(request.call)
        if handler is None:
            raise Refused(Status.UNKNOWN_CALL, f"enclaves have no call {request.call} for the kernel")
        return self._answer(handler, request)

    def _answer(self, handler: _Handler, request: KernelRequest) -> Asking[bytes]:
        try:
            outcome = handler(self, request)
            return outcome if isinstance(outcome, bytes) else (yield from outcome)
        except FormatError as error:
            raise Refused(Status.BAD_REQUEST, str(error)) from None
        except NoFrames as error:
            raise Refused(Status.FULL, str(error)) from None
        except EnclaveError as error:
            raise Refused(Status.NOT_ALLOWED, str(error)) from None
        except MonitorRefused as error:
            raise Refused(error.status, str(error)) from None
        except RmpViolation as error:
            raise Refused(Status.UNAVAILABLE, f"the host took an enclave's page away: {error}") from None

    def _create(self, request: KernelRequest) -> Asking[bytes]:
        layout = Layout.parse(request.body)
        if len(self._enclaves) >= self._settings.most:
            raise Refused(Status.FULL, f"there are {len(self._enclaves)} enclaves already")
        if self._cpuid is None:
            self._cpuid = yield from self.context.monitor.cpuid()
        enclave = self._enclaves[self._next] = Enclave(self._next, layout)
        self._next += 1
        if self._keys.root is None:
            yield from self._take_root(enclave)
        return Created(enclave.number, pages_needed(layout)).pack()

    def _take_root(self, enclave: Enclave) -> Asking[None]:
        try:
            self._keys.root = yield from self.context.monitor.lasting_key()
        except MonitorRefused as error:
            # A key of this launch's in its place would lose what is sealed with it; so there is no key.
            self._ledger.note("refused", enclave, f"no key for sealed files: {error}")

    def _donate(self, request: KernelRequest) -> Asking[bytes]:
        (number,) = _unpack(_ONE, request)
        yield from self._enclave(number).donate(self.context, _pages(request))
        return b""

    def _window(self, request: KernelRequest) -> Asking[bytes]:
        number, slot = _unpack(_TWO, request)
        yield from self._enclave(number).add_window(self.context, slot, _pages(request))
        return b""

    def _add(self, request: KernelRequest) -> Asking[bytes]:
        number, record, page = AddContent.parse(request.body)
        enclave = self._enclave(number)
        try:
            yield from enclave.add_content(self.context, record, page, _pages(request))
        except EnclaveError as error:
            if enclave.state is State.UNUSABLE:
                self._ledger.note("refused", enclave, str(error))
            raise
        return b""

    def _finish(self, request: KernelRequest) -> Asking[bytes]:
        (number,) = _unpack(_ONE, request)
        enclave = self._enclave(number)
        yield from enclave.finish(self.context, TSC_KHZ, self._cpuid or b"")
        self._ledger.note(*_finished(enclave))
        return Finished(enclave.measurement, tuple(enclave.contexts)).pack()

    def _serve(self, request: KernelRequest) -> bytes:
        number, slot = _unpack(_TWO, request)
        enclave = self._enclave(number)
        if enclave.state is not State.READY or slot >= len(enclave.mailboxes):
            raise EnclaveError(f"enclave {number} has no slot {slot} that runs")
        try:
            missing = mailbox.serve(self.context, self._keys, self._ledger, enclave, slot)
        except NeedsPages as needs:
            return PAGES_MISSING.pack(0, needs.pages)
        return b"" if missing is None else PAGE_MISSING.pack(missing)

    def _interrupt(self, request: KernelRequest) -> bytes:
        number, slot = _unpack(_TWO, request)
        enclave = self._enclave(number)
        if enclave.state is not State.READY or slot >= len(enclave.contexts):
            raise EnclaveError(f"enclave {number} has no slot {slot} that runs")
        enclave.interrupt(self.context, slot)
        return b""

    def _reclaim(self, request: KernelRequest) -> Asking[bytes]:
        asked = Reclaim.parse(request.body)
        given = yield from self._enclave(asked.enclave).reclaim(self.context, asked.pages)
        return Reclaimed(tuple(given)).pack()

    def _return(self, request: KernelRequest) -> Asking[bytes]:
        asked = Return.parse(request.body)
        if len(request.pages) != len(asked.addresses):
            raise FormatError(f"{len(request.pages)} pages come back to {len(asked.addresses)} addresses")
        enclave = self._enclave(asked.enclave)
        try:
            yield from enclave.take_back(self.context, asked.addresses, request.pages)
        except EnclaveError as error:
            self._ledger.note("refused", enclave, str(error))
            raise
        return b""

    def _destroy(self, request: KernelRequest) -> Asking[bytes]:
        (number,) = _unpack(_ONE, request)
        enclave = self._enclave(number)
        left, kept = yield from enclave.release(self.context, RELEASED_PAGES)
        if not left and not kept:
            del self._enclaves[number]
        return Released(left, tuple(kept)).pack()

    def _enclave(self, number: int) -> Enclave:
        found = self._enclaves.get(number)
        if found is None:
            raise EnclaveError(f"there is no enclave {number}")
        return found

    # Users

    def _list(self, user: User, body: bytes) -> bytes:
        return pack_enclaves(
            [
                EnclaveStatus(
                    enclave.number, enclave.measurement.hex(), enclave.state.value, enclave.layout.slots,
                    len(enclave.owned),
                )
                for enclave in self._enclaves.values()
            ]
        )  # fmt: skip

    def _attest(self, user: User, body: bytes) -> bytes:
        if len(body) != ATTEST_CALL.size:
            raise Refused(Status.BAD_REQUEST, f"this call has {ATTEST_CALL.size} bytes")
        number, nonce = ATTEST_CALL.unpack(body)
        enclave = self._enclaves.get(number)
        if enclave is None or enclave.state is not State.READY:
            raise Refused(Status.UNAVAILABLE, f"no enclave {number} runs")
        return self._keys.statement(Speaker.USER, enclave, nonce)

    def _provision(self, user: User, body: bytes) -> bytes:
        try:
            asked = Provision.parse(body)
            self._keys.provision(*asked)
        except (FormatError, EnclaveError) as error:
            raise Refused(Status.BAD_REQUEST, str(error)) from None
        for enclave in self._enclaves.values():
            # There may have been no room for it before it was one that somebody waits for.
            is_meant = enclave.measurement == asked.measurement and enclave.state is State.READY
            if is_meant and not self._ledger.was_told(*_finished(enclave)):
                self._ledger.note(*_finished(enclave))
        return b""

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        EnclaveUserCall.LIST: Call(Role.READER, _list),
        EnclaveUserCall.ATTEST: Call(Role.READER, _attest),
        # Who sends a secret decides which enclave acts for whom.
        EnclaveUserCall.PROVISION: Call(Role.OWNER, _provision),
    }

    # Attestation

    def manifest(self) -> bytes:
        """The key that signs statements, and the mode."""
        return EnclaveManifest(self._keys.public, self._settings.mode).pack()

    # Snapshots

    def save(self) -> bytes:
        """All enclaves; what their pages hold is guest memory."""
        state = {
            "next": self._next,
            "keys": self._keys.dump(),
            "told": self._ledger.dump(),
            "cpuid": None if self._cpuid is None else self._cpuid.hex(),
            "enclaves": [enclave.dump() for enclave in self._enclaves.values()],
        }
        return json.dumps(state).encode()

    def restore(self, settings: dict[str, Any], data: bytes) -> None:
        """The same enclaves, with the same keys."""
        state = json.loads(data)
        self._settings = EncSettings.of(settings)
        self._keys = EnclaveKeys.load(state["keys"])
        self._ledger = EnclaveLedger(self.context.record, self.context.log, self._keys.has_secrets)
        self._ledger.load(state["told"])
        self._next = state["next"]
        self._cpuid = None if state["cpuid"] is None else bytes.fromhex(state["cpuid"])
        enclaves = (Enclave.load(self.context.guest, item) for item in state["enclaves"])
        self._enclaves = {enclave.number: enclave for enclave in enclaves}


_Handler = Callable[[EncService, KernelRequest], bytes | Asking[bytes]]
_CALLS: dict[int, _Handler] = {
    EnclaveCall.CREATE: EncService._create,
    EnclaveCall.DONATE: EncService._donate,
    EnclaveCall.WINDOW: EncService._window,
    EnclaveCall.ADD: EncService._add,
    EnclaveCall.FINISH: EncService._finish,
    EnclaveCall.SERVE: EncService._serve,
    EnclaveCall.DESTROY: EncService._destroy,
    EnclaveCall.RECLAIM: EncService._reclaim,
    EnclaveCall.RETURN: EncService._return,
    EnclaveCall.INTERRUPT: EncService._interrupt,
}


def _finished(enclave: Enclave) -> tuple[str, Enclave, str]:
    pages = pages_needed(enclave.layout) + enclave.content_pages()
    return "finished", enclave, f"{pages} pages, {enclave.layout.slots} slots"


def _unpack(shape: struct.Struct, request: KernelRequest) -> tuple[int, ...]:
    if len(request.body) != shape.size:
        raise FormatError(f"this call has {shape.size} bytes, not {len(request.body)}")
    return shape.unpack(request.body)


def _pages(request: KernelRequest) -> tuple[int, ...]:
    if not 0 < len(request.pages) <= CONTENT_PAGES:
        raise FormatError(f"a request names 1 to {CONTENT_PAGES} pages, not {len(request.pages)}")
    return request.pages
