# SPDX-License-Identifier: GPL-2.0-or-later
"""What each level may do with a page of each owner, and which owner may follow which: all of it as data.

Whatever seals, grants or revokes takes its permissions from here, so that the book and the RMP cannot disagree.
docs/monitor.md shows the same table; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from veil.formats.domains import KERNEL_VMPL, Domain
from veil.formats.page_owners import Owner
from veil.snp.rmp import Permission

__all__ = ["LEVELS", "ROWS", "TRANSITIONS", "Right", "Row", "Rows", "Transition"]

_NONE, _R, _RW, _ALL = Permission.NONE, Permission.R, Permission.RW, Permission.ALL
_SUPERVISOR_CODE = Permission.R | Permission.SX


@dataclass(frozen=True)
class Row:
    """The rights on a page of one owner."""

    kernel: Permission = _NONE
    services: Permission = _NONE
    enclaves: Permission = _NONE
    kernel_may_change: bool = False
    """May the kernel validate the page, share it, give it back, have it become something else?"""
    kernel_data: bool = False
    """May the kernel pass arguments and take results there?"""

    def of(self, domain: Domain) -> Permission:
        """What a domain may do. VMPL 0 may do everything (24593, 15.36.7)."""
        return {
            Domain.MON: _ALL,
            Domain.SER: self.services,
            Domain.ENC: self.enclaves,
            Domain.UNT: self.kernel,
        }[domain]


ROWS: dict[Owner, Row] = {
    Owner.NOBODY: Row(),
    Owner.KERNEL: Row(kernel=_ALL, kernel_may_change=True, kernel_data=True),
    Owner.MONITOR: Row(),
    Owner.SERVICE: Row(services=_RW),
    # The services run their program; they do not change it.
    Owner.SERVICE_CODE: Row(services=_SUPERVISOR_CODE),
    # Reading stays allowed: Linux looks at sev_features after CREATE_VCPU.
    Owner.VMSA: Row(kernel=_R),
    Owner.BOOT_VMSA: Row(),
    Owner.CAA: Row(kernel=_ALL, kernel_data=True),
    Owner.BLOCK: Row(kernel=_ALL, services=_RW, kernel_data=True),
    # A service may have to patch code in the kernel's place: jump labels, static calls.
    Owner.KERNEL_CODE: Row(kernel=_SUPERVISOR_CODE, services=_RW),
    # A service may let the kernel have some of it written, and does it in the kernel's place.
    Owner.KERNEL_RODATA: Row(kernel=_R | Permission.UX, services=_RW),
    Owner.MODULE_CODE: Row(kernel=_SUPERVISOR_CODE, services=_RW),
    Owner.ENCLAVE: Row(services=_RW, enclaves=_RW | Permission.UX),
    # For CR2, the address of its last page fault, which it cannot read at CPL 3.
    Owner.ENCLAVE_VMSA: Row(services=_R),
    # No thread writes it any more while the service encrypts it.
    Owner.ENCLAVE_LEAVING: Row(services=_RW),
    # Data for both, code for nobody. It stays validated: an enclave must not find another page there.
    Owner.ENCLAVE_WINDOW: Row(kernel=_RW, services=_RW, enclaves=_RW),
}


@dataclass(frozen=True)
class Transition:
    """A page may pass from one owner to another."""

    services_may_ask: bool = False
    """Else only the kernel's calls and VeilMon itself bring it about."""
    zero: bool = False
    """Nobody may find what the page held before."""


_BY_CALL = Transition()
_BY_SERVICE = Transition(services_may_ask=True)
_BY_SERVICE_ZEROED = Transition(services_may_ask=True, zero=True)

TRANSITIONS: dict[tuple[Owner, Owner], Transition] = {
    (Owner.KERNEL, Owner.CAA): _BY_CALL,
    (Owner.CAA, Owner.KERNEL): _BY_CALL,
    (Owner.KERNEL, Owner.BLOCK): _BY_CALL,
    (Owner.BLOCK, Owner.KERNEL): _BY_CALL,
    (Owner.KERNEL, Owner.VMSA): _BY_CALL,
    (Owner.VMSA, Owner.KERNEL): _BY_CALL,
    (Owner.KERNEL, Owner.BOOT_VMSA): _BY_CALL,
    (Owner.MONITOR, Owner.BOOT_VMSA): _BY_CALL,
    (Owner.BOOT_VMSA, Owner.KERNEL): _BY_CALL,
    (Owner.BOOT_VMSA, Owner.MONITOR): _BY_CALL,
    (Owner.KERNEL, Owner.KERNEL_CODE): _BY_SERVICE,
    (Owner.KERNEL_CODE, Owner.KERNEL): _BY_SERVICE,
    (Owner.KERNEL, Owner.KERNEL_RODATA): _BY_SERVICE,
    (Owner.KERNEL_RODATA, Owner.KERNEL): _BY_SERVICE,
    # Only of what nobody can write any more, so that nothing is executed before it is looked at.
    (Owner.KERNEL_RODATA, Owner.MODULE_CODE): _BY_SERVICE,
    # A module that is refused half way.
    (Owner.MODULE_CODE, Owner.KERNEL_RODATA): _BY_SERVICE,
    (Owner.MODULE_CODE, Owner.KERNEL): _BY_SERVICE,
    (Owner.KERNEL, Owner.ENCLAVE): _BY_SERVICE,
    (Owner.ENCLAVE, Owner.ENCLAVE_LEAVING): _BY_SERVICE,
    # With what the service wrote there: what the page held, encrypted.
    (Owner.ENCLAVE_LEAVING, Owner.KERNEL): _BY_SERVICE,
    (Owner.KERNEL, Owner.ENCLAVE_WINDOW): _BY_SERVICE,
    (Owner.ENCLAVE_WINDOW, Owner.KERNEL): _BY_SERVICE,
    # By requests of their own, in which the page's content is checked, and its registers erased.
    (Owner.ENCLAVE, Owner.ENCLAVE_VMSA): _BY_CALL,
    (Owner.ENCLAVE_VMSA, Owner.ENCLAVE): Transition(zero=True),
    # An enclave's secrets end with it.
    (Owner.ENCLAVE, Owner.KERNEL): _BY_SERVICE_ZEROED,
}


#: Those that RMPADJUST can be about, in the order in which it is.
LEVELS = (Domain.UNT, Domain.ENC, Domain.SER)

Right: TypeAlias = tuple[Domain, Permission]


class Rows:
    """The rows as they are in force: restrictions only ever take rights away."""

    def __init__(self, *, unprotected: bool = False) -> None:
        """`unprotected`: VMPL 3 may do everything everywhere (`Option.UNPROTECTED`)."""
        #: VMPL -> owner -> permissions
        self._table = [[ROWS[owner].of(domain) for owner in Owner] for domain in Domain]
        if unprotected:
            self._table[KERNEL_VMPL] = [_ALL] * len(Owner)
        self._restrictions: dict[tuple[Owner, Domain], Permission] = {}
        self._changes: dict[tuple[Owner, Owner], tuple[list[Right], list[Right]]] = {}

    def change(self, source: Owner, target: Owner) -> tuple[list[Right], list[Right]]:
        """What a page gets on its way from one owner to another: first, so that nobody has more than both rows give;
        then the rest. Only what differs, of levels above VMPL 0."""
        steps = self._changes.get((source, target))
        if steps is None:
            before = {domain: self.permissions(source, domain) for domain in LEVELS}
            after = {domain: self.permissions(target, domain) for domain in LEVELS}
            both = {domain: before[domain] & after[domain] for domain in LEVELS}
            steps = self._changes[source, target] = (
                [(domain, both[domain]) for domain in LEVELS if both[domain] != before[domain]],
                [(domain, after[domain]) for domain in LEVELS if after[domain] != both[domain]],
            )
        return steps

    def permissions(self, owner: Owner, domain: Domain) -> Permission:
        """What a domain may do with a validated page of this owner."""
        return self._table[domain.vmpl][owner]

    def restrict(self, owner: Owner, domain: Domain, keep: Permission) -> None:
        """From now on the domain has on this owner's pages no more than `keep` of what it had."""
        self._table[domain.vmpl][owner] &= keep
        self._changes.clear()
        self._restrictions[owner, domain] = self._restrictions.get((owner, domain), _ALL) & keep

    def dump(self) -> list[list[int]]:
        """For a snapshot: owner, VMPL, permissions kept."""
        return [[owner, domain.vmpl, keep] for (owner, domain), keep in self._restrictions.items()]

    def load(self, state: Iterable[list[int]]) -> None:
        domains = list(Domain)
        for owner, vmpl, keep in state:
            self.restrict(Owner(owner), domains[vmpl], Permission(keep))


assert ROWS.keys() == set(Owner)
assert [domain.vmpl for domain in Domain] == list(range(len(Domain)))
