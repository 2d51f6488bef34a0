# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses that the RMP refused: steps by which Linux patches its code are carried out, everything else is a
violation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from veil.formats.kci_status import CodeEvent
from veil.formats.nested_faults import NestedFault
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_events import RefusedAccess, Verdict
from veil.services.context import Asking, ServiceContext
from veil.services.kci.errors import KciError, reason
from veil.services.kci.explain_code import Configuration
from veil.services.kci.guarded_code import GuardedCode
from veil.services.kci.guarded_data import GuardedData
from veil.services.kci.guarded_pages import GuardedPages
from veil.services.kci.ledger import Ledger
from veil.services.kci.patches import PatchRefused
from veil.services.kci.stores import Store, read_store
from veil.snp.errors import RmpViolation

__all__ = ["Places", "police"]


#: Owners of pages into which the service stores in the kernel's place; and what is said of a page of which nothing is
#: known.
_OF_NOBODY = {Owner.KERNEL_CODE: " of nobody", Owner.MODULE_CODE: " of nobody", Owner.KERNEL_RODATA: ""}
_STORE = NestedFault.WRITE | NestedFault.FINAL


class Places(Protocol):
    """What lies where in the kernel, for words."""

    def address_of(self, gpa: int) -> int | None:
        """The virtual address of a page that is guarded."""

    def describe(self, address: int) -> str:
        """`symbol+0x12`, or the plain address."""


def police(
    access: RefusedAccess,
    context: ServiceContext,
    guarded: Callable[[int], Sequence[GuardedCode | GuardedData]],
    configuration: Configuration | None,
    places: Places,
    ledger: Ledger,
) -> Asking[Verdict | None]:
    """How a VCPU goes on that stands still at an access to a page that is guarded; None for a violation, which is told.
    `guarded` gives the code, or the data that the policy lets the kernel write, in which a page (GPA) is now.

    The page's owner is that of the moment at which VeilMon asked. A request for a module may have been served since:
    who was refused while that was checked finds its page to be code now, or its own again.
    """
    store: Store | None = None
    try:
        if access.access != _STORE:
            raise PatchRefused(_other_access(access))
        there = guarded(access.gpa)
        if not there and not context.guest.reaches(access.gpa):
            return access.resume()
        if access.owner not in _OF_NOBODY or configuration is None:
            raise PatchRefused(f"a write to {access.owner.name}")
        if access.registers.cpl:
            raise PatchRefused(f"a write to {access.owner.name} from user mode")
        if not there:
            raise PatchRefused(f"a write to {access.owner.name}{_OF_NOBODY[access.owner]}")
        store = yield from read_store(context.monitor, access)
        for pages in there:
            address = _place(pages, access.gpa, store)
            if isinstance(pages, GuardedCode):
                patch = pages.patch(configuration, address, store.data)
                ledger.patched(patch, places.describe(patch.address).partition("+")[0])
                break
            if pages.store(address, store.data):
                _tell_exception(access, store, address, pages.place.name, places, ledger)
                break
        else:
            raise PatchRefused(f"a write to {access.owner.name}")
    except RmpViolation as error:
        # The code that was to be patched is not there any more: nobody can go on in it.
        _tell(access, store, places, ledger, reason(error))
        return Verdict.refuse()
    except KciError as error:
        _tell(access, store, places, ledger, str(error))
        return None
    return access.resume(gprs=store.gprs, rip=store.rip)


def _place(pages: GuardedPages, gpa: int, store: Store) -> int:
    """Where in these pages the store begins. The hardware names the page that it refused, which may be the store's
    second: then the address tells how far before it the store begins."""
    address = pages.address_of(gpa)
    assert address is not None
    before = (address - store.address) % PAGE_SIZE
    if before >= len(store.data) or (before and address % PAGE_SIZE):
        raise PatchRefused(f"the store at {store.address:#x} is not the one that was refused at {gpa:#x}")
    return address - before


def _other_access(access: RefusedAccess) -> str:
    if access.access & NestedFault.TABLE:
        return f"{access.owner.name} as a page table"
    if access.access & NestedFault.FETCH:
        return "execution of what is not verified code"
    return f"an access to {access.owner.name}: {access.access!r}"


def _tell_exception(
    access: RefusedAccess, store: Store, address: int, symbol: str, places: Places, ledger: Ledger
) -> None:
    ledger.wrote(
        f"the kernel wrote {store.data.hex()} at {places.describe(address)}, as the policy lets it "
        f"(VCPU {access.vcpu}, RIP {places.describe(access.registers.rip)})",
        symbol,
        vcpu=access.vcpu,
        gpa=access.gpa,
        rip=access.registers.rip,
        address=address,
        bytes=store.data.hex(),
    )


def _tell(
    access: RefusedAccess,
    store: Store | None,
    places: Places,
    ledger: Ledger,
    why: str,
) -> None:
    address = places.address_of(access.gpa)
    symbol = places.describe(address) if address is not None else None
    where = f"{symbol} in " if symbol is not None else ""
    ledger.tell(
        CodeEvent.VIOLATION,
        f"{why} ({where}page {access.gpa & -PAGE_SIZE:#x}, VCPU {access.vcpu}, "
        f"RIP {places.describe(access.registers.rip)})",
        vcpu=access.vcpu,
        gpa=access.gpa,
        owner=access.owner.name,
        rip=access.registers.rip,
        cr3=access.registers.cr3,
        address=address,
        symbol=symbol,
        bytes=store.data.hex() if store is not None else None,
    )
