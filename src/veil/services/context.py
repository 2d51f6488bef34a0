# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service has at hand: its memory, time, randomness, the guest's memory as granted, and VeilMon to ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar

from veil.formats.domains import Domain
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import (
    COPY_PAGES,
    Change,
    CopyIn,
    EnclaveContext,
    GrantCall,
    Move,
    ReadVirtual,
    Restrict,
    pack_copy_and_move,
)
from veil.formats.status import Status
from veil.snp.rmp import Permission

if TYPE_CHECKING:
    from veil.snp.view import View

__all__ = [
    "Ask",
    "Asking",
    "GuestMemory",
    "KernelPiece",
    "LogSpan",
    "MonitorClient",
    "MonitorRefused",
    "Recorder",
    "ServiceContext",
    "ServiceMemory",
]

_T = TypeVar("_T")

#: As many pages to be copied fit into the outbox beside the largest move.
_COPIED_WITH = 512


class Ask(NamedTuple):
    """A request to VeilMon, which a handler yields; it goes on with VeilMon's answer."""

    call: GrantCall
    body: bytes


#: What waits for VeilMon on its way to an X: called with `yield from`.
Asking: TypeAlias = Generator[Ask, tuple[Status, bytes], _T]


class MonitorRefused(Exception):
    """VeilMon did nothing of what it was asked; one line why."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


class ServiceMemory:
    """A service's own memory, by offset: VMPL 3 can neither read nor write it."""

    def __init__(self, view: View, gpa: int, size: int) -> None:
        self.size = size
        self._view = view
        self._gpa = gpa

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at an offset."""
        return self._view.read(self.gpa(offset, length), length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put bytes at an offset."""
        self._view.write(self.gpa(offset, len(data)), data)

    def gpa(self, offset: int, length: int) -> int:
        """Where a part of it is; raises ValueError if it is not all inside."""
        if offset < 0 or length < 0 or offset + length > self.size:
            self._refuse(offset, length)
        return self._gpa + offset

    def _refuse(self, offset: int, length: int) -> NoReturn:
        # A service has no business in another one's memory, which its level could reach.
        raise ValueError(f"{offset:#x}+{length:#x} is outside of the service's {self.size:#x} bytes")


class GuestMemory:
    """Memory outside of the services' region, as far as the page's owner lets VMPL 1 reach it.

    The RMP checks each access: what is not granted is an RmpViolation. What the kernel can write it can change at any
    time.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes at a guest-physical address."""
        return self._view.read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        """Put bytes at a guest-physical address."""
        self._view.write(gpa, data)

    def reaches(self, gpa: int) -> bool:
        """May VMPL 1 read the page that holds `gpa` now? The kernel's own pages it may not."""
        return self._view.allows(gpa, Permission.R)


class MonitorClient:
    """VeilMon, as a service asks it: each call is used with `yield from` in a handler, and raises MonitorRefused.

    The handler stops until VeilMon has answered. The kernel may run meanwhile; other requests to services wait.
    """

    def __init__(self, memory: ServiceMemory) -> None:
        self._memory = memory

    def move(self, ranges: Sequence[tuple[int, int]], source: Owner, target: Owner) -> Asking[None]:
        """Pages (GPA, size) of one owner become another's: all of them, or none. 512 ranges and 16 MiB at most."""
        yield from self.change([Change(source, target, ranges)])

    def change(self, changes: Sequence[Change]) -> Asking[None]:
        """Several moves at once: all of them, or none; each page once. 8 of them, 512 ranges and 16 MiB at most."""
        yield from _ask(GrantCall.MOVE, Move(changes).pack())

    def copy_in(self, pages: Sequence[int], length: int, offset: int) -> Asking[None]:
        """Copy the first `length` bytes of pages of the kernel's into the service's memory, each page once.

        What was copied is what counts: the kernel can change its pages at any time.
        """
        for first in range(0, -(-length // PAGE_SIZE), COPY_PAGES):
            at = first * PAGE_SIZE
            part = min(length - at, COPY_PAGES * PAGE_SIZE)
            some = pages[first : first + COPY_PAGES][: -(-part // PAGE_SIZE)]
            yield from _ask(GrantCall.COPY_IN, CopyIn(self._memory.gpa(offset + at, part), part, some).pack())

    def copy_and_change(
        self, pages: Sequence[int], length: int, offset: int, changes: Sequence[Change]
    ) -> Asking[None]:
        """`copy_in`, then `change`, without a domain switch between them. If it is refused, nothing has changed but the
        service's memory."""
        if len(pages) > _COPIED_WITH:
            yield from self.copy_in(pages, length, offset)
            yield from self.change(changes)
        else:
            copy = CopyIn(self._memory.gpa(offset, length), length, pages)
            yield from _ask(GrantCall.COPY_AND_MOVE, pack_copy_and_move(copy, Move(changes)))

    def restrict(self, owner: Owner, domain: Domain, keep: Permission) -> Asking[None]:
        """From now on a domain has on an owner's pages, those to come as well, no more than `keep` of its rights.

        UNAVAILABLE if pages keep more: all others are restricted all the same, and it can be asked again.
        """
        yield from _ask(GrantCall.RESTRICT, Restrict(owner, domain.vmpl, keep).pack())

    def read_virtual(self, vcpu: int, address: int, length: int) -> Asking[bytes]:
        """What the kernel's page tables on a VCPU have at a virtual address, 4 KiB at most.

        Only while an access of that VCPU is decided, which is in `access_refused`. The kernel could read it there
        itself, and can change it at any time on another VCPU.
        """
        return (yield from _ask(GrantCall.READ_VIRTUAL, ReadVirtual(vcpu, address, length).pack()))

    def cpuid(self) -> Asking[bytes]:
        """The entries of the CPUID page as it was launched, 0x30 bytes each (`veil.snp.layouts.CpuidFunction`)."""
        return (yield from _ask(GrantCall.CPUID, b""))

    def lasting_key(self) -> Asking[bytes]:
        """32 bytes that are the same in each launch of this image with this policy on this processor, and that nobody
        else has: not the kernel, the host, or another image. UNAVAILABLE if the host does not let VeilMon ask."""
        return (yield from _ask(GrantCall.LASTING_KEY, b""))

    def make_vmsa(self, gpa: int) -> Asking[None]:
        """A page of ENCLAVE, which holds a VMSA of VMPL 2 and CPL 3, becomes a context that each VCPU may run.

        From here on nobody but VeilMon reaches its registers.
        """
        yield from _ask(GrantCall.MAKE_VMSA, EnclaveContext(gpa).pack())

    def drop_vmsa(self, gpa: int) -> Asking[None]:
        """It becomes a page of ENCLAVE again, zeroed. UNAVAILABLE while it runs."""
        yield from _ask(GrantCall.DROP_VMSA, EnclaveContext(gpa).pack())


def _ask(call: GrantCall, body: bytes) -> Asking[bytes]:
    status, answer = yield Ask(call, body)
    if status != Status.OK:
        raise MonitorRefused(status, answer.decode(errors="replace"))
    return answer


class Recorder(Protocol):
    """Puts an entry of a service's own into the protected log, if there is one.

    Those that find no room wait, and of many some are lost, and counted. Of those that are `urgent` none is lost for
    others that wait. A service that has a share of the log (`Service.log_share`) has room there whatever else
    fills it.
    """

    def __call__(self, word: bytes, /, *, urgent: bool = False) -> None: ...


class LogSpan(NamedTuple):
    """How far the protected log has come, in bytes."""

    size: int = 1 << 62
    """Of its memory. Where there is no log there is room for everything."""
    told: int = 0
    """That were ever put into it."""
    gone: int = 0
    """Of these, from the first on: an owner has acknowledged them, and their place is free."""


@dataclass(frozen=True)
class KernelPiece:
    """A segment of the kernel's image, as it was launched."""

    virtual: int
    gpa: int
    copy: ServiceMemory
    """Its bytes, copied before the kernel ran."""


@dataclass(frozen=True)
class ServiceContext:
    """A service's surroundings."""

    memory: ServiceMemory
    now: Callable[[], int]
    """The machine's time stamp counter in nanoseconds."""
    guest: GuestMemory
    monitor: MonitorClient
    record: Recorder = lambda _, *, urgent=False: None
    kernel: Sequence[KernelPiece] = ()
    """If a service's settings say that it needs it (`ServiceSettings.keeps_kernel`)."""
    log: Callable[[], LogSpan] = LogSpan
    """Of the protected log to which `record` leads."""
    log_shares: Mapping[int, float] = field(default_factory=dict)
    """By service number what of the log's memory is for its words alone: for the service that is the log."""

    @staticmethod
    def nonce() -> bytes:
        """32 random bytes."""
        return os.urandom(32)
