# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI: the kernel runs no supervisor code but code that is explained, whatever its page tables say."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from veil.formats.errors import FormatError
from veil.formats.kci import FILE_PART, KCI_GUID, KCI_NUMBER, FilePart, KernelCall, ModulePrepared
from veil.formats.kci_settings import HALT, OFF, KciSettings
from veil.formats.kci_status import CodeEvent, KciStatus, UserCall
from veil.formats.page_owners import Owner
from veil.formats.roles import Call, Role
from veil.formats.service_events import VECTOR_GP, RefusedAccess, Verdict
from veil.formats.status import Status
from veil.services.context import Asking, MonitorRefused
from veil.services.interface import KernelRequest, Refused, Service, User, UserHandler
from veil.services.kci.errors import REFUSALS, NotGivenBack, reason, undo
from veil.services.kci.explain_code import Configuration
from veil.services.kci.guarded_code import GuardedCode
from veil.services.kci.guarded_data import GuardedData, pages_around
from veil.services.kci.ledger import Ledger
from veil.services.kci.lock_down import forbid_all_code, forbid_other_code, guard_text, lock_text, unlock_text
from veil.services.kci.measured_kernel import MeasuredKernel
from veil.services.kci.module_calls import ModuleCalls
from veil.services.kci.refused_accesses import police

__all__ = ["KciService"]

_U32 = struct.Struct("<I")
#: Bytes of a status: it must fit into the mailbox, whatever the kernel did.
_MAX_STATUS = 224 << 10
#: How much of it is told: symbols of each kind of patches, modules. The first that fits is.
_TOLD = ((4096, 1024), (1024, 1024), (256, 1024), (64, 1024), (16, 1024), (16, 256), (16, 32))
_Told = TypeVar("_Told", FilePart, ModulePrepared)


class KciService(Service):
    """Nothing is kept from the kernel before it is locked down; from then on what is not verified does not run."""

    name = "kci"
    number = KCI_NUMBER
    guid: ClassVar[uuid.UUID] = KCI_GUID
    settings_type = KciSettings
    guards = frozenset(
        {Owner.KERNEL_CODE, Owner.MODULE_CODE, Owner.KERNEL_RODATA, Owner.KERNEL, Owner.CAA, Owner.BLOCK}
    )

    def __init__(self) -> None:
        self._settings = KciSettings()
        self._locked_ns: int | None = None
        self._refused = False
        """Lock-down was tried, and refused: it is not tried again."""
        self._ended = False
        """The kernel may execute nothing any more."""
        self._configuration: Configuration | None = None
        self._explained: Mapping[str, int] = {}
        self._text: GuardedCode | None = None

    def start(self, settings: dict[str, Any]) -> None:
        """Nothing is derived before it is needed."""
        self._settings = KciSettings.of(settings)
        self._measured = MeasuredKernel(self.context.kernel, self._settings)
        self._ledger = Ledger(self.context.record)
        self._loader = ModuleCalls(self.context, self._settings, self._measured, self._ledger)

    # The kernel

    def kernel_request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        """What the driver asks (`KernelCall`)."""
        if self._settings.mode == OFF:
            raise Refused(Status.NOT_ALLOWED, "this CVM was launched without lock-down")
        if request.call == KernelCall.LOCK_DOWN:
            return self._lock_down()
        if self._refused:
            # Nothing is protected, as the log and the status say: modules are the kernel's own affair.
            return _U32.pack(0) if request.call == KernelCall.MODULE_PREPARED else b""
        if request.call == KernelCall.MODULE_FILE:
            return self._checked(self._loader.take_file(_parsed(FilePart, request.body), request.pages))
        if request.call == KernelCall.MODULE_PREPARED:
            return self._prepared(request)
        if request.call in (KernelCall.MODULE_LIVE, KernelCall.MODULE_GONE):
            return self._changed(request)
        raise Refused(Status.UNKNOWN_CALL, f"code integrity has no call {request.call} for the kernel")

    def _lock_down(self) -> Asking[bytes]:
        if self._locked_ns is not None or self._refused:
            words = "lock-down was asked for again"
            self._ledger.tell(CodeEvent.VIOLATION, words)
            if self._settings.mode == HALT:
                yield from self._end_kernel()
            raise Refused(Status.NOT_ALLOWED, words)
        try:
            writable = self._measured.writable
            locked = yield from lock_text(self.context, self._measured)
            try:
                yield from self._loader.admit_early(locked.explanation.configuration, locked.code)
            except Exception as error:
                try:
                    yield from undo(error, self._loader.release())
                finally:
                    yield from undo(error, unlock_text(self.context, locked.code, locked.read_only))
                raise
            yield from self._forbid_other_code()
        except Exception as error:
            # Whatever it was: somebody must learn that the kernel goes on as it is, or must not go on.
            self._refused = True
            words = f"the kernel is not locked down: {reason(error)}"
            self._ledger.tell(CodeEvent.NOT_LOCKED, words)
            if self._settings.mode == HALT and not self._ended:
                yield from self._end_kernel()
            if not isinstance(error, REFUSALS):
                raise
            raise Refused(Status.NOT_ALLOWED, words) from None
        self._text, self._locked_ns = locked.code, self.now()
        self._configuration = locked.explanation.configuration
        self._explained = {kind: count for kind, count in locked.explanation.sites.items() if count}
        self._ledger.tell(
            CodeEvent.LOCKED,
            f"the kernel is locked down: {len(locked.code.pages)} pages of text, in which {locked.explanation.changed} "
            f"bytes that are not as measured are explained, {len(self._loader.modules)} modules"
            + "".join(f", and {place.name} may be written ({place.size} bytes)" for place in writable),
            **self._explained,
        )
        return b""

    def _forbid_other_code(self) -> Asking[None]:
        """Raises MonitorRefused if pages keep the right that they must lose."""
        try:
            yield from forbid_other_code(self.context)
        except MonitorRefused:
            # All others have lost it, for good: text that is given back could not be executed any more, and the kernel
            # would end some instructions later. To go on without these pages would be to claim what is not so.
            yield from self._end_kernel()
            raise

    def _prepared(self, request: KernelRequest) -> Asking[bytes]:
        part = _parsed(FilePart, request.body[: FILE_PART.size])
        told = _parsed(ModulePrepared, request.body[FILE_PART.size :])
        number = yield from self._checked(
            self._loader.take(part, told, request.pages, self._configuration, self._guarded_text())
        )
        return _U32.pack(number)

    def _changed(self, request: KernelRequest) -> Asking[bytes]:
        if len(request.body) != _U32.size:
            raise Refused(Status.BAD_REQUEST, "this call names a module by its number")
        (number,) = _U32.unpack(request.body)
        self._guarded_text()
        change = self._loader.live if request.call == KernelCall.MODULE_LIVE else self._loader.gone
        yield from self._checked(change(number))
        return b""

    def _checked(self, work: Asking[Any]) -> Asking[Any]:
        try:
            return (yield from work)
        except NotGivenBack as error:
            # The driver keeps these pages out of use.
            raise Refused(Status.UNAVAILABLE, reason(error)) from None
        except REFUSALS as error:
            raise Refused(Status.NOT_ALLOWED, reason(error)) from None

    # What the hardware refused

    def access_refused(self, access: RefusedAccess) -> Asking[Verdict]:
        """A patch of the kernel's, or a violation."""
        if self._ended:
            # What other VCPUs come upon when none can execute anything: the first violation says why.
            return Verdict.refuse()
        self._guarded_text()
        verdict = yield from police(
            access, self.context, self._guarded, self._configuration, self._loader, self._ledger
        )
        if verdict is not None:
            return verdict
        if self._settings.mode == HALT:
            yield from self._end_kernel()
            return Verdict.refuse()
        # A kernel that makes a mistake survives #GP as it survives others; one that attacks has gained nothing.
        # #PF would not end: Linux finds that its page tables allow the access, and tries again (a stale TLB entry).
        return Verdict.inject(VECTOR_GP)

    def _end_kernel(self) -> Asking[None]:
        self._ended = True
        try:
            yield from forbid_all_code(self.context)
        except MonitorRefused as error:
            # The host keeps pages from VeilMon. The VCPU that did it stands still all the same.
            self._ledger.tell(CodeEvent.VIOLATION, f"the kernel's other VCPUs may run on: {error}")

    def _guarded(self, gpa: int) -> list[GuardedCode | GuardedData]:
        """What decides about a store to a page."""
        text = self._guarded_text()
        if text is None:
            return []
        kernel, guest = self._measured, self.context.guest
        own = [GuardedData(place, kernel.pages(pages_around(place)), guest) for place in kernel.writable]
        found: list[GuardedCode | GuardedData] = [text, *self._loader.codes(), *own, *self._loader.data()]
        return [pages for pages in found if pages.address_of(gpa) is not None]

    def _guarded_text(self) -> GuardedCode | None:
        """None before lock-down; after a snapshot it is derived when it is needed first."""
        if self._text is None and self._locked_ns is not None:
            text = guard_text(self._measured, self.context.guest)
            self._loader.rebuild(text)
            self._text = text
        return self._text

    # Users

    def _tell_status(self, user: User, body: bytes) -> bytes:
        for symbols, modules in _TOLD:
            packed = self._status(symbols, modules).pack()
            if len(packed) <= _MAX_STATUS:
                break
        return packed

    def _status(self, symbols: int, modules: int) -> KciStatus:
        """With so many symbols of each kind of patches, and so many modules, at most."""
        ledger, locked = self._ledger, self._guarded_text() is not None
        newest = list(self._loader.modules.values())[-modules:]
        return KciStatus(
            mode=self._settings.mode,
            locked_ns=self._locked_ns,
            text_pages=len(self._measured.pages(self._measured.ranges.text)) if locked else 0,
            read_only_pages=sum(len(self._measured.pages(piece)) for piece in self._measured.ranges.read_only)
            if locked
            else 0,
            explained=self._explained,
            patches=ledger.most_patched(symbols),
            writable={symbol: ledger.writes.get(symbol, 0) for symbol in self._settings.writable},
            violations=ledger.violations,
            refused=ledger.refused,
            modules=[module.status for module in newest],
            modules_left_out=len(self._loader.modules) - len(newest),
            words=list(ledger.words),
        )

    user_calls: ClassVar[Mapping[int, Call[UserHandler]]] = {
        # What runs in the CVM is no business of whoever can open a connection.
        UserCall.STATUS: Call(Role.READER, _tell_status),
    }

    def manifest(self) -> bytes:
        """The policy."""
        return json.dumps(self._settings.measured(), sort_keys=True).encode()

    # Snapshots

    def save(self) -> bytes:
        """What happened, and the modules' files: what follows from them is derived again."""
        known = self._configuration
        state = {
            "locked_ns": self._locked_ns,
            "refused": self._refused,
            "ended": self._ended,
            "configuration": None if known is None else {**vars(known), "features": dict(known.features)},
            "explained": dict(self._explained),
            "ledger": self._ledger.dump(),
            "loader": self._loader.dump(),
        }
        return json.dumps(state).encode()

    def restore(self, settings: dict[str, Any], data: bytes) -> None:
        """The kernel is as locked as it was."""
        self.start(settings)
        state = json.loads(data)
        self._locked_ns, self._explained = state["locked_ns"], state["explained"]
        self._refused, self._ended = state["refused"], state["ended"]
        known = state["configuration"]
        if known is not None:
            known["features"] = {int(number): value for number, value in known["features"].items()}
            self._configuration = Configuration(**known)
        self._ledger.load(state["ledger"])
        self._loader.load(state["loader"])


def _parsed(kind: type[_Told], body: bytes) -> _Told:
    try:
        return kind.parse(body)
    except FormatError as error:
        raise Refused(Status.BAD_REQUEST, str(error)) from None
