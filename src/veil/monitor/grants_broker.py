# SPDX-License-Identifier: GPL-2.0-or-later
"""The grants broker: what the services' domain asks VeilMon to change, in the outbox (`formats.service_domain`).

VeilMon alone executes RMPADJUST and PVALIDATE. A request is decoded whole, checked whole, then done; one that cannot be
done to its end is taken back, but for a restriction: what was taken stays taken. The host decides when VeilMon runs
and on which VCPU, and nothing else: the outbox is memory of VMPL 0 and 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING

from veil.formats.domains import Domain
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.registers import Efer
from veil.formats.request_block import BlockRequest, take_request, write_answer
from veil.formats.service_domain import (
    Change,
    CopyIn,
    EnclaveContext,
    GrantCall,
    Move,
    ReadVirtual,
    Restrict,
    mailbox_and_outbox,
    parse_copy_and_move,
)
from veil.formats.status import Status
from veil.formats.termination import MonitorReason
from veil.monitor.enclave_contexts import enclave_features, find_fault
from veil.monitor.errors import MonitorError
from veil.monitor.kernel_memory import KernelMemory, NotMapped
from veil.monitor.page_book import Owner
from veil.monitor.page_rights import LEVELS, ROWS, TRANSITIONS, Right
from veil.monitor.rmp_changes import retry
from veil.monitor.secure_processor import AnswerUnavailable
from veil.snp.errors import RmpViolation
from veil.snp.layouts import CpuidPage, Vmsa
from veil.snp.rmp import Adjustment, PageSize, Permission, RmpResult

if TYPE_CHECKING:
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.secure_processor import GuestMessages
    from veil.monitor.state import MonitorState
    from veil.snp.hosted import HostedCpu
    from veil.snp.view import View

__all__ = ["Grants"]

_SIZE_MISMATCH = int(RmpResult.FAIL_SIZEMISMATCH)
#: what these write is checked by somebody else, or by nobody
_UNCHECKED = (Domain.UNT, Domain.ENC)


class _Refused(Exception):
    """Nothing was done."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


class Grants:
    """Serves the outbox, from whichever VCPU VeilMon runs on."""

    def __init__(self, state: MonitorState) -> None:
        self._state = state
        parameters = state.parameters
        _, (self._outbox, self._size) = mailbox_and_outbox(parameters.mailbox_gpa, parameters.mailbox_size)
        self._offered = parameters.service_code.size > 0
        #: a request is being served: its steps wait for the host on some VCPU
        self.busy = False
        #: the way to the secure processor, as soon as there is one
        self.messages: GuestMessages | None = None

    def is_asked(self, view: View) -> bool:
        """Does the domain wait for something that nobody is doing yet?"""
        return self._offered and not self.busy and view.read_u32(self._outbox) != 0

    def serve(self, host: Ghcb) -> Generator[None, None, None]:
        """Do what the domain asks for (`is_asked`)."""
        cpu = host.cpu
        self.busy = True
        try:
            status, body = yield from self._answer(host)
        finally:
            self.busy = False
        write_answer(cpu.view, self._outbox, self._size, status, body)

    def _answer(self, host: Ghcb) -> Generator[None, None, tuple[Status, bytes]]:
        try:
            request = take_request(host.cpu.view, self._outbox, self._size)
            assert request is not None
            return Status.OK, (yield from self._do(host, request))
        except FormatError as error:
            return Status.BAD_REQUEST, str(error).encode()
        except _Refused as refusal:
            return refusal.status, str(refusal).encode()

    def _do(self, host: Ghcb, request: BlockRequest) -> Generator[None, None, bytes]:
        cpu = host.cpu
        if request.call == GrantCall.MOVE:
            yield from self._move(cpu, Move.parse(request.body))
        elif request.call == GrantCall.COPY_IN:
            self._copy_in(cpu, CopyIn.parse(request.body))
        elif request.call == GrantCall.COPY_AND_MOVE:
            copy, move = parse_copy_and_move(request.body)
            self._copy_in(cpu, copy)
            yield from self._move(cpu, move)
        elif request.call == GrantCall.RESTRICT:
            yield from self._restrict(cpu, Restrict.parse(request.body))
        elif request.call == GrantCall.MAKE_VMSA:
            yield from self._make_vmsa(host, EnclaveContext.parse(request.body).gpa)
        elif request.call == GrantCall.DROP_VMSA:
            yield from self._drop_vmsa(host, EnclaveContext.parse(request.body).gpa)
        elif request.call == GrantCall.CPUID:
            return self._cpuid(cpu)
        elif request.call == GrantCall.LASTING_KEY:
            return (yield from self._lasting_key(host))
        elif request.call == GrantCall.READ_VIRTUAL:
            return self._read_virtual(cpu, ReadVirtual.parse(request.body))
        else:
            raise _Refused(Status.UNKNOWN_CALL, f"VeilMon has no call {request.call} for services")
        return b""

    # MOVE

    def _move(self, cpu: HostedCpu, move: Move) -> Generator[None, None, None]:
        book = self._state.book
        for change in move.changes:
            self._check_change(cpu, change)
        # From here on until all is done the kernel's calls refuse these pages, whatever runs while the host splits an
        # RMP entry. Else it would have what leaves, and may yet stay, validated anew or made a block, and write it.
        self._claim(change for change in move.changes if not ROWS[change.target].kernel_may_change)
        given: list[Change] = []
        steps = [self._state.rows.change(change.source, change.target) for change in move.changes]
        try:
            # First nobody has more than both owners' rows give, for all of them: while the host splits an entry for one
            # page, the kernel must not write another one that could become code again.
            taken = zip(move.changes, steps, strict=True)
            yield from _adjust_all(
                cpu, [each for change, (rights, _) in taken for each in _adjustments(change, rights)]
            )
            for change in move.changes:
                if TRANSITIONS[change.source, change.target].zero:
                    for gpa, size in change.ranges:
                        cpu.view.zero(gpa, size)
            for change, (_, rights) in zip(move.changes, steps, strict=True):
                given.append(change)
                yield from _adjust_all(cpu, _adjustments(change, rights))
        except (_Refused, RmpViolation) as error:
            for change in move.changes:
                yield from self._undo(cpu, change, given=change in given)
            for change in move.changes:
                for gpa, size in change.ranges:
                    book.claim(gpa, size, change.source)
            raise _Refused(Status.UNAVAILABLE, f"the host does not let VeilMon change pages: {error}") from error
        self._claim(move.changes)

    def _claim(self, changes: Iterable[Change]) -> None:
        for change in changes:
            for gpa, size in change.ranges:
                self._state.book.claim(gpa, size, change.target)

    def _undo(self, cpu: HostedCpu, change: Change, *, given: bool) -> Generator[None, None, None]:
        before, after = self._levels(change.source), self._levels(change.target)
        pages = [page for gpa, size in change.ranges for page in range(gpa, gpa + size, PAGE_SIZE)]
        if given and any(after[domain] & ~before[domain] & Permission.W for domain in _UNCHECKED):
            # What may have been written by now nobody has looked at: it must not pass for what was there.
            yield from self._take_back(cpu, pages, {domain: before[domain] & after[domain] for domain in LEVELS})
            for page in pages:
                with contextlib.suppress(RmpViolation):
                    cpu.view.zero(page, PAGE_SIZE)
        yield from self._take_back(cpu, pages, before)

    def _check_change(self, cpu: HostedCpu, change: Change) -> None:
        book, source, target = self._state.book, change.source, change.target
        transition = TRANSITIONS.get((source, target))
        if transition is None or not transition.services_may_ask:
            raise _Refused(Status.NOT_ALLOWED, f"no service may make a page of {target.name} of one of {source.name}")
        for gpa, size in change.ranges:
            if not book.is_all(source, gpa, size):
                pages = range(gpa, gpa + size, PAGE_SIZE)
                other = next(page for page in pages if book.owner(page) is not source)
                raise _Refused(Status.NOT_ALLOWED, f"the page {other:#x} is not one of {source.name}")
            if not cpu.view.allows(gpa, Permission.RW, size):
                raise _Refused(Status.UNAVAILABLE, f"a page from {gpa:#x} on is not validated memory")

    def _adjust(
        self, cpu: HostedCpu, pages: Iterable[int], permissions: dict[Domain, Permission], *, vmsa: bool = False
    ) -> Generator[None, None, None]:
        for page in pages:
            for domain, allowed in permissions.items():
                code = yield from retry(cpu, _rmpadjust(cpu, page, PageSize.SIZE_4K, domain, allowed, vmsa=vmsa))
                if code != RmpResult.SUCCESS:
                    raise _Refused(Status.UNAVAILABLE, f"RMPADJUST of {page:#x}: {RmpResult(code).name}")

    def _take_back(
        self, cpu: HostedCpu, pages: Iterable[int], permissions: dict[Domain, Permission]
    ) -> Generator[None, None, None]:
        """Page by page. What the host took away cannot be adjusted, and need not be: RMPUPDATE took all rights too.

        A page that is there still, and cannot be adjusted, would have rights that the book does not know: stop.
        """
        for page in pages:
            try:
                yield from self._adjust(cpu, [page], permissions)
            except (_Refused, RmpViolation) as error:
                if cpu.view.allows(page, Permission.R, PAGE_SIZE):
                    raise MonitorError(
                        MonitorReason.HOST_REFUSED, f"the page {page:#x} cannot get its rights back: {error}"
                    ) from error

    # COPY_IN

    def _copy_in(self, cpu: HostedCpu, copy: CopyIn) -> None:
        book = self._state.book
        if not book.is_all(Owner.SERVICE, copy.target, copy.length):
            raise _Refused(Status.NOT_ALLOWED, "a copy goes into the services' memory only")
        # Not a context, not protected memory, not what another VCPU passes arguments in: the kernel's own pages.
        other = book.first_not_kernel(copy.pages)
        if other is not None:
            raise _Refused(Status.BAD_REQUEST, f"the page {other:#x} is not the kernel's")
        try:
            content = b"".join([cpu.view.read(page, PAGE_SIZE) for page in copy.pages])
        except RmpViolation as violation:
            raise _Refused(Status.BAD_REQUEST, f"a page is not validated memory: {violation}") from violation
        try:
            cpu.view.write(copy.target, content[: copy.length])
        except RmpViolation as violation:
            raise _Refused(Status.UNAVAILABLE, f"the host took the services' memory away: {violation}") from violation

    # READ_VIRTUAL

    def _read_virtual(self, cpu: HostedCpu, read: ReadVirtual) -> bytes:
        vcpu = self._state.domains.by_apic_id(read.vcpu)
        # Only while the context stands still: else its tables would be those of whatever process runs by then. Nor in
        # a call that waits for the host: no service has a question about those.
        if vcpu is None or vcpu.deciding is None:
            raise _Refused(Status.NOT_ALLOWED, f"no access of VCPU {read.vcpu} is being decided")
        try:
            vmsa = Vmsa.from_buffer_copy(cpu.view.read(vcpu.deciding, PAGE_SIZE))
            return KernelMemory(cpu.view, vmsa).read(read.address, read.length)
        except NotMapped as error:
            raise _Refused(Status.BAD_REQUEST, str(error)) from error
        except RmpViolation as violation:
            raise _Refused(Status.BAD_REQUEST, f"the context's registers are gone: {violation}") from violation

    # CPUID

    def _cpuid(self, cpu: HostedCpu) -> bytes:
        """Out of the page whose digest the parameters have: the kernel's copy is the kernel's to change."""
        try:
            page = CpuidPage.from_buffer_copy(cpu.view.read(self._state.parameters.cpuid_gpa, PAGE_SIZE))
        except RmpViolation as violation:
            raise _Refused(Status.UNAVAILABLE, f"the host took the CPUID page away: {violation}") from violation
        return b"".join(map(bytes, page.functions[: page.count]))

    # MAKE_VMSA, DROP_VMSA

    def _make_vmsa(self, host: Ghcb, gpa: int) -> Generator[None, None, None]:
        cpu, book = host.cpu, self._state.book
        if book.owner(gpa) is not Owner.ENCLAVE:
            raise _Refused(Status.NOT_ALLOWED, f"the page {gpa:#x} is not an enclave's")
        if not cpu.view.allows(gpa, Permission.RW, PAGE_SIZE):
            raise _Refused(Status.UNAVAILABLE, f"the page {gpa:#x} is not validated memory")
        book.move(gpa, PAGE_SIZE, Owner.ENCLAVE_VMSA)
        try:
            yield from self._seal(cpu, gpa)
        except (_Refused, RmpViolation) as error:
            yield from self._take_back(cpu, [gpa], self._levels(Owner.ENCLAVE))
            book.claim(gpa, PAGE_SIZE, Owner.ENCLAVE)
            if isinstance(error, _Refused):
                raise
            raise _Refused(Status.UNAVAILABLE, f"the host took the page away: {error}") from error
        self._state.domains.enclaves.add(gpa)
        if not (yield from host.create_enclave(gpa, enclave_features(self._state.sev_features))):
            yield from self._unseal(cpu, gpa)
            raise _Refused(Status.UNAVAILABLE, f"the host does not take the context at {gpa:#x}")

    def _seal(self, cpu: HostedCpu, gpa: int) -> Generator[None, None, None]:
        sealed = self._levels(Owner.ENCLAVE_VMSA)
        # Out of everybody's reach before it is looked at: what is checked is what will run.
        yield from self._adjust(cpu, [gpa], sealed)
        why = find_fault(Vmsa.from_buffer_copy(cpu.view.read(gpa, PAGE_SIZE)), self._state.sev_features)
        if why is not None:
            raise _Refused(Status.BAD_REQUEST, why)
        yield from self._adjust(cpu, [gpa], {Domain.UNT: sealed[Domain.UNT]}, vmsa=True)

    def _drop_vmsa(self, host: Ghcb, gpa: int) -> Generator[None, None, None]:
        if gpa not in self._state.domains.enclaves:
            raise _Refused(Status.NOT_ALLOWED, f"the page {gpa:#x} is no context of VMPL 2")
        yield from self._unseal(host.cpu, gpa)
        yield from host.destroy_enclave(gpa)

    def _unseal(self, cpu: HostedCpu, gpa: int) -> Generator[None, None, None]:
        view = cpu.view
        try:
            efer = view.read_u64(gpa + Vmsa.efer.offset)
            # No VMRUN enters it from here on, whatever the host tries before the attribute is gone.
            view.write_u64(gpa + Vmsa.efer.offset, efer & ~Efer.SVME)
            try:
                yield from self._adjust(cpu, [gpa], {Domain.UNT: self._levels(Owner.ENCLAVE_VMSA)[Domain.UNT]})
            except _Refused:
                view.write_u64(gpa + Vmsa.efer.offset, efer)
                raise
            view.zero(gpa, PAGE_SIZE)
            self._state.book.move(gpa, PAGE_SIZE, Owner.ENCLAVE)
            self._state.domains.enclaves.discard(gpa)
            yield from self._adjust(cpu, [gpa], self._levels(Owner.ENCLAVE))
        except RmpViolation as error:
            raise _Refused(Status.UNAVAILABLE, f"the host took the page away: {error}") from error

    def _levels(self, owner: Owner) -> dict[Domain, Permission]:
        return {domain: self._state.rows.permissions(owner, domain) for domain in LEVELS}

    def _lasting_key(self, host: Ghcb) -> Generator[None, None, bytes]:
        if self.messages is None:
            raise _Refused(Status.UNAVAILABLE, "VeilMon has not finished its boot")
        try:
            return (yield from self.messages.lasting_key(host))
        except AnswerUnavailable as error:
            raise _Refused(Status.UNAVAILABLE, str(error)) from error

    # RESTRICT

    def _restrict(self, cpu: HostedCpu, restrict: Restrict) -> Generator[None, None, None]:
        owner, domain = restrict.owner, list(Domain)[restrict.vmpl]
        if not any(owner in pair and transition.services_may_ask for pair, transition in TRANSITIONS.items()):
            raise _Refused(Status.NOT_ALLOWED, f"no service may restrict pages of {owner.name}")
        # What the kernel may change it may turn into what it passes arguments in, and back: one restriction for all.
        owners = [other for other in Owner if other is owner or (owner is Owner.KERNEL and ROWS[other].kernel_data)]
        for other in owners:
            # Before the pages: whatever is granted meanwhile is granted by the new row.
            self._state.rows.restrict(other, domain, Permission(restrict.keep))
        refused: list[str] = []
        # One pass for all of them: meanwhile the kernel has pages pass from one to another, and they keep their rights.
        for gpa, size in [(gpa, size) for found, gpa, size in self._state.book.runs() if found in owners]:
            refused += yield from self._apply(cpu, gpa, gpa + size, owners, domain)
        # The rows stay as they are now, and so do all pages that could be changed: to give rights back because one
        # page kept them would leave more of them. Asked again, it tries again.
        if refused:
            raise _Refused(Status.UNAVAILABLE, refused[0])

    def _apply(
        self, cpu: HostedCpu, gpa: int, end: int, owners: Sequence[Owner], domain: Domain
    ) -> Generator[None, None, list[str]]:
        """Give the pages their row's rights; what was refused, in words, while the others get them."""
        refused = list[str]()
        while gpa < end:
            if gpa % PAGE_SIZE_2M == 0 and end - gpa >= PAGE_SIZE_2M:
                code = yield from self._apply_to(cpu, gpa, PageSize.SIZE_2M, owners, domain)
                if code == RmpResult.SUCCESS:
                    gpa += PAGE_SIZE_2M
                    continue
            stop = min(end, (gpa // PAGE_SIZE_2M + 1) * PAGE_SIZE_2M)
            for page in range(gpa, stop, PAGE_SIZE):
                code = yield from self._apply_to(cpu, page, PageSize.SIZE_4K, owners, domain)
                if code != RmpResult.SUCCESS:
                    refused.append(f"RMPADJUST of {page:#x}: {RmpResult(code).name}")
            gpa = stop
        return refused

    def _apply_to(
        self, cpu: HostedCpu, gpa: int, size: PageSize, owners: Sequence[Owner], domain: Domain
    ) -> Generator[None, None, int]:
        """RMPADJUST of pages that are one of the owners' still: others may have got them while the host was asked."""
        book, rows = self._state.book, self._state.rows

        def operation() -> int:
            owner = book.owner(gpa)
            if owner not in owners or not book.is_all(owner, gpa, size.pages * PAGE_SIZE):
                return _SIZE_MISMATCH if size else int(RmpResult.SUCCESS)
            adjust = _rmpadjust(cpu, gpa, size, domain, rows.permissions(owner, domain))
            # A page that is not validated is used by nobody: it gets its row's rights when it is validated. To ask for
            # them now would have the host split an entry of 2 MiB.
            return adjust() if size or cpu.view.allows(gpa, Permission.R, PAGE_SIZE) else int(RmpResult.SUCCESS)

        try:
            return (yield from retry(cpu, operation))
        except RmpViolation:
            # Not validated, or taken away by the host, which takes all permissions.
            return _SIZE_MISMATCH if size else int(RmpResult.SUCCESS)


def _rmpadjust(
    cpu: HostedCpu, gpa: int, size: PageSize, domain: Domain, permissions: Permission, *, vmsa: bool = False
) -> Callable[[], int]:
    return lambda: cpu.view.rmpadjust(gpa, size=size, vmpl=domain.vmpl, permissions=permissions, vmsa=vmsa)


def _adjustments(change: Change, rights: Iterable[Right]) -> list[Adjustment]:
    return [(gpa, size // PAGE_SIZE, domain.vmpl, allowed) for domain, allowed in rights for gpa, size in change.ranges]


def _adjust_all(cpu: HostedCpu, adjustments: Sequence[Adjustment]) -> Generator[None, None, None]:
    if adjustments:
        code, gpa = yield from retry(cpu, lambda: cpu.view.rmpadjust_all(adjustments))
        if code is not RmpResult.SUCCESS:
            raise _Refused(Status.UNAVAILABLE, f"RMPADJUST of {gpa:#x}: {code.name}")
