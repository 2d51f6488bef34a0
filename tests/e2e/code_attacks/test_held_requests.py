# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon waits for the host in the middle of what VeilS-KCI asked of it: kernel-mode code on another VCPU works
meanwhile, and the host helps it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.e2e.code_attacks.accomplice import Accomplice, HoldingHost, Script
from tests.e2e.code_attacks.guests import RAN, CodeGuest, Resume
from tests.e2e.code_attacks.hostile_files import resigned
from tests.e2e.code_attacks.lying_driver import LyingDriver, memory_of
from tests.services.kci.modules.made_module import A, MadeModule, MadeSection, W, X
from veil.formats.domains import Domain
from veil.formats.kci import KCI_NUMBER, KernelCall, MemoryType
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import Restrict
from veil.formats.status import Status
from veil.formats.svsm_calls import CoreCall, ServicesCall, SvsmProtocol
from veil.host import NestedPageFault
from veil.monitor import Owner, grants_broker
from veil.monitor.grants_broker import Grants
from veil.monitor.page_rights import ROWS
from veil.monitor.svsm_call import ResultCode
from veil.snp import EntryFlag, Permission

_CORE, _SERVICES = SvsmProtocol.CORE, SvsmProtocol.SERVICES
_OK, _INVALID_ADDRESS = int(ResultCode.SUCCESS), int(ResultCode.INVALID_ADDRESS)
#: An entry of PVALIDATE's list: validate, though it is validated already.
_ANEW = 3 << 2
_CODE = Permission.R | Permission.SX


def _large_page(guest: CodeGuest) -> int:
    """2 MiB of the kernel's that have one RMP entry."""
    for _ in range(16):
        gpa = guest.number("large")
        if guest.vm.machine.rmp.entry(gpa)["flags"] & EntryFlag.SIZE_2M:
            return gpa
    raise AssertionError("no RMP entry of 2 MiB is left")


def _rights(guest: CodeGuest, gpa: int) -> Permission:
    """What VMPL 3 may do with a page."""
    return Permission(int(guest.vm.machine.rmp.effective()["perms"][gpa // PAGE_SIZE, 3]))


# A module's code goes back with a page that comes

_MODULE = MadeModule(
    sections=(
        MadeSection(".text", b"\x31\xc0\xc3", flags=A | X),
        MadeSection(".init.text", b"\x31\xc0\xc3", flags=A | X),
        MadeSection(".modinfo", b"name=made\0license=GPL\0vermagic=6.12 SMP\0version=1.0\0"),
        MadeSection(".data..ro_after_init", bytes(8), flags=A | W),
        MadeSection(".gnu.linkonce.this_module", bytes(64), flags=A | W),
    ),
    symbols=(),
).build()


class _Module:
    """A module for which somebody vouches; the kernel has put it where it likes."""

    def __init__(self, guest: CodeGuest) -> None:
        self.guest = guest
        self._driver = driver = LyingDriver(guest)
        driver.file(resigned(_MODULE))
        pages = dict(zip(memory_of(_MODULE), driver.pages, strict=False))
        #: what is read-only when the init function has returned: VeilMon waits for the host to split its entry
        self.late = pages[MemoryType.RO_AFTER_INIT] = _large_page(guest)
        #: the init function's page, which is the kernel's again by then
        self.init = pages[MemoryType.INIT_TEXT]
        self.list = driver.pages[-1]
        kernel = guest.vm.machine.view(vmpl=3)
        self.content = b"\x31\xc0\xc3".ljust(PAGE_SIZE, b"\0")
        for kind in (MemoryType.TEXT, MemoryType.INIT_TEXT):
            kernel.write(pages[kind], self.content)
        kernel.write(self.list, struct.pack("<HHIQ", 1, 0, 0, self.init | _ANEW))
        assert driver.prepared(_MODULE, list(pages.values())) == Status.OK
        self._number = guest.status().modules[-1].number
        assert _rights(guest, self.init) == _CODE

    def live(self) -> Status:
        """Its init function has returned."""
        return self._driver.ask(KernelCall.MODULE_LIVE, struct.pack("<I", self._number), [], "together")

    @property
    def is_wrong_code(self) -> bool:
        """Can the kernel execute on the init function's page what nobody has looked at?"""
        found = self.guest.vm.machine.view(vmpl=0).read(self.init, PAGE_SIZE)
        return bool(_rights(self.guest, self.init) & Permission.SX) and found != self.content


Call = Callable[[_Module, Accomplice], Script[int]]
#: What the kernel may ask for one of its own pages.
_CALLS: Mapping[str, Call] = {
    "validated anew": lambda module, other: other.call(_CORE, CoreCall.PVALIDATE, module.list),
    "a VMSA": lambda module, other: other.call(_CORE, CoreCall.CREATE_VCPU, module.init, module.list, 1),
    "a calling area": lambda module, other: other.call(_CORE, CoreCall.REMAP_CA, module.init),
    "a block": lambda module, other: other.call(_SERVICES, ServicesCall.REGISTER_BLOCK, module.init, 1),
}


def _held_move(
    module: _Module,
    patch: pytest.MonkeyPatch,
    meanwhile: Callable[[], Script[None]],
    then: Callable[[], Script[None]],
) -> None:
    """The init function's page goes back, with it the late page comes. VeilMon waits for the host, which takes the late
    page away when the kernel's other VCPU has done its part: so all is taken back. Then that VCPU goes on first."""
    holding = HoldingHost(patch, module.guest.vm.hypervisor)

    def attack() -> Script[None]:
        yield from meanwhile()
        module.guest.vm.machine.host_view().rmpupdate(module.late, assigned=False)
        holding.when_it_answers_services(then)

    holding.when_it_splits(attack)
    assert module.live() == Status.NOT_ALLOWED


def test_what_leaves_is_nobodys_to_change_yet(resume: Resume, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = resume()
    module = _Module(guest)
    other = Accomplice(guest, module.init)
    answers: list[int] = []

    def ask_all() -> Script[None]:
        for call in _CALLS.values():
            answers.append((yield from call(module, other)))
        assert not _rights(guest, module.init) & Permission.W

    def ask_again() -> Script[None]:
        # It was taken back.
        assert _rights(guest, module.init) == _CODE
        assert not module.is_wrong_code
        yield from ask_all()

    with monkeypatch.context() as patch:
        _held_move(module, patch, ask_all, ask_again)
    assert answers == [_INVALID_ADDRESS] * 8
    # Without the page that the host took away it went back at last: as data.
    known = len(guest.violations())
    assert guest.attack("frame", module.init) is None
    *_, word = violations = guest.violations()
    assert len(violations) == known + 1
    assert "execution of what is not verified code" in word.words


@pytest.mark.parametrize("kind", _CALLS)
def test_counter_test_a_monitor_that_gives_pages_away_at_once(
    resume: Resume, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Then the kernel has what it likes executed: code of its own, or the zeros that VeilMon writes for it."""
    guest = resume()
    module = _Module(guest)
    other = Accomplice(guest, module.init)
    ran: list[int] = []

    def change() -> Script[None]:
        answer = yield from _CALLS[kind](module, other)
        assert answer == (ResultCode.INVALID_PARAMETER if kind == "a VMSA" else _OK)
        if kind in ("validated anew", "a VMSA"):
            yield from other.put()

    def use() -> Script[None]:
        if kind == "a block":
            # It is the kernel's by the book, with the rights of code.
            assert (yield from other.call(_SERVICES, ServicesCall.REGISTER_BLOCK, 0, 0)) == _OK
            assert (yield from _CALLS["a calling area"](module, other)) == _OK
        assert module.is_wrong_code
        ran.append((yield from other.run()) if kind in ("validated anew", "a VMSA") else RAN)

    with monkeypatch.context() as patch:
        all_at_once = {owner: replace(row, kernel_may_change=False) for owner, row in ROWS.items()}
        patch.setattr(grants_broker, "ROWS", all_at_once)
        _held_move(module, patch, change, use)
    assert ran == [RAN]


# Memory that loses the right to be executed


@dataclass
class _Open:
    """A guest that is not locked down yet: the page that the attacker will use, and how it is plain memory again."""

    guest: CodeGuest
    page: int
    freed: Callable[[], Script[int]]


def _open(guest: CodeGuest, kind: str) -> _Open:
    # VeilMon goes from the lowest page to the highest: the one to come later is not restricted yet when it waits.
    low, high = sorted((_large_page(guest), _large_page(guest)))
    area, block = low + PAGE_SIZE, high + PAGE_SIZE
    page = block if kind == "a block" else area
    other = Accomplice(guest, page)
    # Its neighbours have another owner from here on: VeilMon will have their RMP entry split.
    assert other.now(other.call(_CORE, CoreCall.REMAP_CA, area)) == _OK
    if kind == "a block":
        assert other.now(other.call(_SERVICES, ServicesCall.REGISTER_BLOCK, block, 1)) == _OK
        return _Open(guest, page, lambda: other.call(_SERVICES, ServicesCall.REGISTER_BLOCK, 0, 0))
    return _Open(guest, page, lambda: other.call(_CORE, CoreCall.REMAP_CA, area + PAGE_SIZE))


def _locked_down(kernel: _Open, patch: pytest.MonkeyPatch) -> None:
    """While VeilMon takes the right to execute from memory, the kernel's other VCPU has the page be plain memory."""
    guest = kernel.guest
    rows = guest.monitor.state.rows

    def attack() -> Script[None]:
        assert _rights(guest, kernel.page) & Permission.SX
        assert (yield from kernel.freed()) == _OK
        assert guest.monitor.book.owner(kernel.page) is Owner.KERNEL

    holding = HoldingHost(patch, guest.vm.hypervisor)
    # While the attacker's module is looked at it cannot be executed.
    holding.runs_only_meanwhile(1)
    holding.when_it_splits(attack, if_=lambda: not rows.permissions(Owner.KERNEL, Domain.UNT) & Permission.SX)
    assert guest.attack("together", guest.block(0), KCI_NUMBER, KernelCall.LOCK_DOWN, "0", "-") == [Status.OK]
    assert guest.monitor.book.owner(kernel.page) is Owner.KERNEL
    assert guest.status().locked_ns is not None


def _writable_code(guest: CodeGuest) -> list[int]:
    """GPAs of pages that VMPL 3 can write, and execute as a supervisor."""
    both = int(Permission.W | Permission.SX)
    found = guest.vm.machine.rmp.effective()["perms"][:, 3] & both == both
    return [int(page) * PAGE_SIZE for page in np.flatnonzero(found)]


_KINDS = ("a calling area", "a block")


@pytest.mark.parametrize("kind", _KINDS)
def test_no_page_slips_through_a_restriction(
    unasked: Callable[[], CodeGuest], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    kernel = _open(unasked(), kind)
    with monkeypatch.context() as patch:
        _locked_down(kernel, patch)
    assert _writable_code(kernel.guest) == []
    with pytest.raises(NestedPageFault, match="VMPL 3 has no permission") as caught:
        kernel.guest.attack("frame", kernel.page)
    assert caught.value.gpa & -PAGE_SIZE == kernel.page


def _owner_by_owner(grants: Grants, cpu: Any, restrict: Restrict) -> Generator[None, None, None]:
    domain = list(Domain)[restrict.vmpl]
    owners = [Owner.KERNEL, Owner.CAA, Owner.BLOCK]
    for owner in owners:
        grants._state.rows.restrict(owner, domain, Permission(restrict.keep))
    for owner in owners:
        for gpa, size in list(grants._state.book.ranges(owner)):
            yield from grants._apply(cpu, gpa, gpa + size, [owner], domain)


@pytest.mark.parametrize("kind", _KINDS)
def test_counter_test_a_monitor_that_restricts_owner_by_owner(
    unasked: Callable[[], CodeGuest], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    kernel = _open(unasked(), kind)
    with monkeypatch.context() as patch:
        patch.setattr(Grants, "_restrict", _owner_by_owner)
        _locked_down(kernel, patch)
    assert kernel.page in _writable_code(kernel.guest)
    assert kernel.guest.attack("frame", kernel.page) == [RAN]
