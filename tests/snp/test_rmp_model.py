# SPDX-License-Identifier: GPL-2.0-or-later
"""The RMP's instructions and the views' checks against the independent model, in random order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.examples import examples
from tests.snp.ciphers import AddingCipher
from tests.snp.rmp_model import LETTERS, Fault, Model, Record, letters
from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.errors import RmpViolation
from veil.snp.guest_bus import GuestBus
from veil.snp.host_view import HostView
from veil.snp.memory import Memory
from veil.snp.rmp import EntryFlag, PageSize, Rmp
from veil.snp.view import View

# Two 2 MiB regions and the start of a third, which no 2 MiB entry can cover.
PAGES = 2 * 512 + 8

_FAULTS = {
    "rmp": 1 << 31,
    "rmp+enc": 1 << 31 | 1 << 34,
    "rmp+enc+sizem": 1 << 31 | 1 << 34 | 1 << 35,
    "rmp+enc+vmpl": 1 << 31 | 1 << 34 | 1 << 36,
    "gp": 1 << 62,
    "not validated": 1 << 63,
}

# Few pages, so that the instructions meet; the ends of entries, so that they overlap.
WATCHED = [0, 1, 511, 512, 513, 1023, 1024, PAGES - 1]
WILD = [PAGES, 1 << 39, (1 << 52) - 1]
pages = st.sampled_from(WATCHED)

#: What an instruction is aimed at: mostly an entry that exists, with the size that it has (see `RmpMachine.aim`).
aims = st.integers(0, 63)
vmpls = st.integers(0, 3)
mostly_vmpl0 = st.sampled_from([0] * 9 + [1, 2, 3])
masks = st.integers(0, 15)
mostly_true = st.sampled_from([True] * 15 + [False])
rarely = st.sampled_from([False] * 5 + [True])
either = st.booleans()
cpls = st.sampled_from([0] * 15 + [3])


def flags_of(record: Record) -> int:
    """The state bits of a model's record."""
    return (
        record.guest * int(EntryFlag.ASSIGNED)
        + record.validated * int(EntryFlag.VALIDATED)
        + record.vmsa * int(EntryFlag.VMSA)
        + record.large * int(EntryFlag.SIZE_2M)
        + record.frozen * int(EntryFlag.IMMUTABLE)
    )


def mask_of(permissions: frozenset[str]) -> int:
    """The permission mask of a model's set."""
    return sum(bit for bit, letter in LETTERS.items() if letter in permissions)


class RmpMachine(RuleBasedStateMachine):
    """Does everything on the machine and on the model, and compares."""

    def __init__(self) -> None:
        super().__init__()
        memory = Memory(PAGES * PAGE_SIZE)
        self.rmp = Rmp(memory.pages)
        self.cipher = AddingCipher()
        self.bus = GuestBus(memory, self.rmp, self.cipher)
        self.host = HostView(self.bus)
        self.model = Model(PAGES)
        self.content: dict[int, bytes] = {}
        self.before = self.model.allowed(WATCHED)

    def aim(self, number: int, *, runnable: bool = False) -> tuple[int, PageSize]:
        """A page and a size of operand: three times out of four those of a page that the guest owns."""
        if number < 48:
            hits = [page for page in WATCHED if self.model.pages[page].guest]
            if runnable:
                hits = [page for page in hits if self.model.pages[page].vmsa]
            if hits:
                page = hits[number % len(hits)]
                if not self.model.pages[page].large:
                    return page, PageSize.SIZE_4K
                # One time out of four inside the large page, with the wrong size.
                return (page, PageSize.SIZE_4K) if number % 4 == 3 else (page - page % 512, PageSize.SIZE_2M)
        anywhere = [*WATCHED, *WILD]
        return anywhere[number % len(anywhere)], PageSize(number % 3 == 0)

    def both(self, machine: Callable[[], Any], model: Callable[[], Any]) -> tuple[Any, Any]:
        """Run one instruction on both sides; if it faults, it must do so on both, alike, and without effect."""
        generation = self.rmp.generation
        fault: str | None = None
        expected, got = None, None
        try:
            expected = model()
        except Fault as error:
            fault = str(error)
        if fault is None:
            got = machine()
        else:
            table = self.rmp.dump()
            with pytest.raises(RmpViolation) as caught:
                machine()
            assert caught.value.fault == _FAULTS[fault]
            assert self.rmp.dump() == table
        after = self.model.allowed(WATCHED)
        # The generation is exact: it grows if an access that was allowed has ended, and only then.
        assert (self.rmp.generation > generation) == bool(self.before - after)
        self.before = after
        return got, expected

    @initialize(
        large=either,
        validated=either,
        running=either,
        first=st.tuples(masks, masks, masks),
        mask=st.tuples(masks, masks, masks),
    )
    def launched(
        self,
        large: bool,
        validated: bool,
        running: bool,
        first: tuple[int, int, int],
        mask: tuple[int, int, int],
    ) -> None:
        """Start where something can be lost: the first region as one page perhaps, launched pages in the second."""
        if large:
            self.rmpupdate(0, True, PageSize.SIZE_2M, not validated and running)
            if validated:
                self.launch(0, PageSize.SIZE_2M, False, first)
        for page in (512, 513, 1024):
            self.rmpupdate(page, True, PageSize.SIZE_4K, page == 513 and not validated)
            if page != 513 or validated:
                self.launch(page, PageSize.SIZE_4K, page == 512, mask)
        if running:
            self.vmrun_at(512)

    @rule(aim=aims, assigned=either, frozen=rarely)
    def rmpupdate_somewhere(self, aim: int, assigned: bool, frozen: bool) -> None:
        page, size = self.aim(aim)
        self.rmpupdate(page, assigned, size, frozen and assigned)

    @rule(page=pages, large=either)
    def give(self, page: int, large: bool) -> None:
        """The host gives a page and VMPL 0 accepts it, if the table lets them."""
        size = PageSize(large and page % 512 == 0)
        self.rmpupdate(page, True, size, False)
        self.pvalidate_at(page, 0, 0, size, True, True)

    def rmpupdate(self, page: int, assigned: bool, size: PageSize, frozen: bool) -> None:
        count = size.pages
        owned = [record.guest for record in self.model.pages[page : page + count]]
        got, expected = self.both(
            lambda: self.host.rmpupdate(page * PAGE_SIZE, assigned=assigned, size=size, immutable=frozen),
            lambda: self.model.rmpupdate(page, assigned, bool(size), frozen),
        )
        assert got.name == expected
        if expected == "SUCCESS":
            for number, was_owned in enumerate(owned, page):
                if was_owned != assigned and any(self.content.get(number, b"")):
                    cipher = self.cipher.decrypt_page if assigned else self.cipher.encrypt_page
                    self.content[number] = cipher(number * PAGE_SIZE, self.content[number])

    @rule(aim=aims)
    def psmash(self, aim: int) -> None:
        page, _ = self.aim(aim)
        got, expected = self.both(lambda: self.host.psmash(page * PAGE_SIZE), lambda: self.model.psmash(page))
        assert got.name == expected

    @rule(aim=aims, vmsa=either, mask=st.tuples(masks, masks, masks))
    def launch_somewhere(self, aim: int, vmsa: bool, mask: tuple[int, int, int]) -> None:
        self.launch(*self.aim(aim), vmsa, mask)

    def launch(self, page: int, size: PageSize, vmsa: bool, mask: tuple[int, int, int]) -> None:
        got, expected = self.both(
            lambda: self.rmp.launch_page(page * PAGE_SIZE, size=size, vmsa=vmsa, permissions=mask),
            lambda: self.model.launch(page, bool(size), vmsa, mask),
        )
        assert got.name == expected

    @rule(aim=aims, vmpl=mostly_vmpl0, cpl=cpls, validate=either, private=mostly_true)
    def pvalidate(self, aim: int, vmpl: int, cpl: int, validate: bool, private: bool) -> None:
        page, size = self.aim(aim)
        self.pvalidate_at(page, vmpl, cpl, size, validate, private)

    def pvalidate_at(self, page: int, vmpl: int, cpl: int, size: PageSize, validate: bool, private: bool) -> None:
        got, expected = self.both(
            lambda: self.rmp.pvalidate(
                page * PAGE_SIZE, vmpl=vmpl, cpl=cpl, size=size, validate=validate, private=private
            ),
            lambda: self.model.pvalidate(page, vmpl, cpl, bool(size), validate, private),
        )
        if expected is not None:
            assert (got.code.name, got.unchanged) == expected

    @rule(
        aim=aims,
        vmpl=st.sampled_from([0, 0, 0, 1, 1, 2, 3]),
        cpl=cpls,
        level=st.sampled_from([*[1, 2, 3] * 3, 3, 0, 4, 255]),
        mask=st.sampled_from([*range(16), *range(16), 16, 128, 255]),
        vmsa=rarely,
        private=mostly_true,
    )
    def rmpadjust(self, aim: int, vmpl: int, cpl: int, level: int, mask: int, vmsa: bool, private: bool) -> None:
        page, size = self.aim(aim)
        got, expected = self.both(
            lambda: self.rmp.rmpadjust(
                page * PAGE_SIZE,
                vmpl=vmpl,
                cpl=cpl,
                target=level,
                permissions=mask,
                size=size,
                vmsa=vmsa,
                private=private,
            ),
            lambda: self.model.rmpadjust(page, vmpl, cpl, bool(size), level, mask, vmsa, private),
        )
        if expected is not None:
            assert got.name == expected

    @rule(aim=aims, vmpl=vmpls, cpl=cpls, level=st.sampled_from([0, 1, 2, 3, 4]), private=mostly_true)
    def rmpquery(self, aim: int, vmpl: int, cpl: int, level: int, private: bool) -> None:
        page, _ = self.aim(aim)
        got, expected = self.both(
            lambda: self.rmp.rmpquery(page * PAGE_SIZE, vmpl=vmpl, cpl=cpl, target=level, private=private),
            lambda: self.model.rmpquery(page, vmpl, cpl, level, private),
        )
        if expected is not None:
            assert (got.code.name, letters(got.permissions), got.vmsa, bool(got.size)) == expected

    @rule(aim=aims)
    def vmrun(self, aim: int) -> None:
        """A VMSA starts to run, as far as VMRUN would let it; or nothing runs."""
        self.vmrun_at(self.aim(aim, runnable=True)[0] if aim else None)

    def vmrun_at(self, page: int | None) -> None:
        if page is not None and page < PAGES:
            record = self.model.pages[page]
            runnable = record.guest and record.validated and record.vmsa and not record.frozen and not record.large
            assert self.rmp.is_vmsa(page * PAGE_SIZE) == runnable
            if not runnable:
                return
        elif page is not None:
            assert not self.rmp.is_vmsa(page * PAGE_SIZE)
            return
        self.model.running = page
        self.rmp.vmsa_in_use = None if page is None else page * PAGE_SIZE

    def refusal(self, first: int, last: int, vmpl: int, wanted: frozenset[str], private: bool) -> str | None:
        """Why the model refuses an access to these pages."""
        for page in range(first, last + 1):
            reason = self.model.denies(page, vmpl, wanted, private)
            if reason or page >= PAGES:
                return reason or "rmp"
        return None

    def peek(self, gpa: int, length: int) -> bytes:
        first, last = gpa // PAGE_SIZE, (gpa + length - 1) // PAGE_SIZE
        whole = b"".join(self.content.get(page, bytes(PAGE_SIZE)) for page in range(first, last + 1))
        return whole[gpa - first * PAGE_SIZE :][:length]

    def poke(self, gpa: int, data: bytes) -> None:
        for at, byte in enumerate(data, gpa):
            page, offset = divmod(at, PAGE_SIZE)
            old = self.content.get(page, bytes(PAGE_SIZE))
            self.content[page] = old[:offset] + bytes((byte,)) + old[offset + 1 :]

    @rule(
        aim=aims,
        offset=st.sampled_from([0, 8, 4092, 4095]),
        length=st.sampled_from([1, 2, 4, 8, 16, 5000]),
        vmpl=vmpls,
        cpl=st.sampled_from([0, 3]),
        private=mostly_true,
    )
    def read(self, aim: int, offset: int, length: int, vmpl: int, cpl: int, private: bool) -> None:
        page, _ = self.aim(aim)
        gpa = page * PAGE_SIZE + offset
        view = View(self.bus, vmpl, cpl)
        reader = {1: view.read_u8, 2: view.read_u16, 4: view.read_u32, 8: view.read_u64}.get(length)
        reason = self.refusal(page, (gpa + length - 1) // PAGE_SIZE, vmpl, frozenset("r"), private)
        if reason:
            with pytest.raises(RmpViolation) as caught:
                view.read(gpa, length, private=private)
            assert caught.value.fault == _FAULTS[reason]
            assert caught.value.vmpl == vmpl
            if reader:
                with pytest.raises(RmpViolation):
                    reader(gpa, private=private)
        else:
            expected = self.peek(gpa, length)
            assert view.read(gpa, length, private=private) == expected
            if reader:
                assert reader(gpa, private=private) == int.from_bytes(expected, "little")

    @rule(
        aim=aims,
        offset=st.sampled_from([0, 8, 4092, 4095]),
        value=st.integers(1, 255),
        length=st.sampled_from([1, 2, 4, 8, 16]),
        vmpl=mostly_vmpl0,
        private=mostly_true,
    )
    def write(self, aim: int, offset: int, value: int, length: int, vmpl: int, private: bool) -> None:
        page, _ = self.aim(aim)
        gpa = page * PAGE_SIZE + offset
        view = View(self.bus, vmpl)
        data = bytes((value,)) * length
        number = int.from_bytes(data, "little")
        writer = {1: view.write_u8, 2: view.write_u16, 4: view.write_u32, 8: view.write_u64}.get(length)
        if self.refusal(page, (gpa + length - 1) // PAGE_SIZE, vmpl, frozenset("w"), private):
            with pytest.raises(RmpViolation):
                view.write(gpa, data, private=private)
            if writer:
                with pytest.raises(RmpViolation):
                    writer(gpa, number, private=private)
        else:
            if writer:
                writer(gpa, number, private=private)
            else:
                view.write(gpa, data, private=private)
            self.poke(gpa, data)

    @rule(aim=aims, value=st.integers(0, 255), vmpl=mostly_vmpl0, private=mostly_true)
    def exchange(self, aim: int, value: int, vmpl: int, private: bool) -> None:
        view = View(self.bus, vmpl)
        page, _ = self.aim(aim)
        gpa = page * PAGE_SIZE + 7
        if self.refusal(page, page, vmpl, frozenset("rw"), private):
            with pytest.raises(RmpViolation):
                view.exchange_u8(gpa, value, private=private)
        else:
            assert view.exchange_u8(gpa, value, private=private) == self.peek(gpa, 1)[0]
            self.poke(gpa, bytes((value,)))

    @rule(aim=aims, vmpl=vmpls, cpl=st.sampled_from([0, 3]))
    def execute(self, aim: int, vmpl: int, cpl: int) -> None:
        page, _ = self.aim(aim)
        view = View(self.bus, vmpl, cpl)
        if self.refusal(page, page, vmpl, frozenset("u" if cpl == 3 else "s"), True):
            with pytest.raises(RmpViolation):
                view.check_execute(page * PAGE_SIZE)
        else:
            view.check_execute(page * PAGE_SIZE)

    @rule(page=pages, value=st.integers(1, 255))
    def host_write(self, page: int, value: int) -> None:
        gpa = page * PAGE_SIZE + 16
        if self.model.pages[page].guest:
            with pytest.raises(RmpViolation):
                self.host.write_u8(gpa, value)
        else:
            self.host.write_u8(gpa, value)
            self.poke(gpa, bytes((value,)))

    @rule(page=pages)
    def host_read(self, page: int) -> None:
        content = self.content.get(page, bytes(PAGE_SIZE))
        if self.model.pages[page].guest:
            content = self.cipher.encrypt_page(page * PAGE_SIZE, content)
        assert self.host.read(page * PAGE_SIZE, PAGE_SIZE) == content
        assert self.host.is_shared(page * PAGE_SIZE) != self.model.pages[page].guest
        assert self.host.is_private(page * PAGE_SIZE) == self.model.pages[page].guest

    @invariant()
    def entries_agree(self) -> None:
        for page in WATCHED:
            entry, record = self.rmp.entry(page * PAGE_SIZE), self.model.pages[page]
            assert entry["flags"] == flags_of(record)
            assert entry["perms"].tolist() == [mask_of(level) for level in record.levels]

    @rule(aim=aims, vmpl=vmpls, private=mostly_true)
    def every_access(self, aim: int, vmpl: int, private: bool) -> None:
        page, _ = self.aim(aim)
        for mask in range(1, 16):
            reason = self.refusal(page, page, vmpl, letters(mask), private)
            fault, _ = self.rmp.check_range(page * PAGE_SIZE, 1, vmpl=vmpl, permissions=mask, private=private)
            assert fault == (_FAULTS[reason] if reason else 0)

    def teardown(self) -> None:
        table = self.rmp.effective()
        assert table["flags"].tolist() == [flags_of(record) for record in self.model.pages]
        assert table["perms"].tolist() == [[mask_of(level) for level in record.levels] for record in self.model.pages]
        assert not table["reserved"].any()
        # What is under a 2 MiB entry is zero: views rely on it.
        for base in np.flatnonzero(self.rmp.entries["flags"] & EntryFlag.SIZE_2M):
            assert not any(self.rmp.words[base + 1 : base + 512])


RmpMachine.TestCase.settings = settings(
    max_examples=examples(80), stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRmpMachine = RmpMachine.TestCase
