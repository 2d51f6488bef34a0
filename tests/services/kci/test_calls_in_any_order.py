# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that tells of its modules in any order, of the same pages for several, of memory that is not what it says,
while its host takes pages away and copies the machine: what it can execute is what was verified, and nothing fails."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.services.kci.module_guest import EXPORTER, JUMP, LABELLED, ModuleGuest
from tests.services.kci.small_kernel import NOP5
from veil.formats.kci import KernelCall, MemoryType
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.services import Refused

_MADE = (EXPORTER, LABELLED)
_PLACES = 2
_PAGES = [0x5000_0000 + number * 2 * PAGE_SIZE for number in range(8)]
_CALLS = (KernelCall.MODULE_LIVE, KernelCall.MODULE_GONE)
_STORED = (b"\xcc", JUMP[1:], JUMP[:1], NOP5[1:], NOP5[:1], b"\x90", JUMP)
_CODE = (MemoryType.TEXT, MemoryType.INIT_TEXT)

_page = st.sampled_from(_PAGES)
_pages = st.lists(_page, min_size=6, max_size=6)
_moves = st.lists(
    st.one_of(
        st.tuples(st.just("load"), st.integers(0, 1), st.integers(0, _PLACES - 1), st.just(_PAGES), _page),
        st.tuples(st.just("load"), st.integers(0, 1), st.integers(0, _PLACES - 1), st.permutations(_PAGES), st.none()),
        st.tuples(st.just("load"), st.integers(0, 1), st.integers(0, _PLACES - 1), _pages, st.none()),
        st.tuples(st.just("load"), st.integers(0, 1), st.integers(0, _PLACES - 1), st.just(_PAGES), st.none()),
        st.tuples(st.just("load"), st.integers(0, 1), st.integers(0, _PLACES - 1), st.just(_PAGES[::-1]), st.none()),
        st.tuples(st.just("say"), st.sampled_from(_CALLS), st.integers(1, 4)),
        st.tuples(
            st.just("store"),
            _page,
            st.sampled_from((0, 1, 8)),
            st.sampled_from(_STORED),
            st.sampled_from((None, Owner.KERNEL_RODATA, Owner.MODULE_CODE)),
        ),
        st.tuples(st.just("poke"), _page),
        st.tuples(st.just("write"), _page),
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("take"), _page),
    ),
    max_size=14,
)


class _Kernel:
    def __init__(self) -> None:
        self.guest = ModuleGuest()
        self.guest.load(EXPORTER, _PLACES)
        self.verified: set[bytes] = set()
        """What a page of code of a module's may hold."""
        for made in _MADE:
            for place in range(_PLACES):
                content = self.guest.memory(made, place)[1]
                self.verified |= {content[kind] for kind in _CODE}
                first = content[MemoryType.TEXT]
                if made is LABELLED:
                    sites = (JUMP, b"\xcc" + JUMP[1:], b"\xcc" + NOP5[1:])
                    self.verified |= {site + first[len(site) :] for site in sites}

    def load(self, number: int, place: int, pages: list[int], changed: int | None) -> None:
        guest, made = self.guest, _MADE[number]
        told, content = guest.memory(made, place)
        named = pages[: len(content)]
        for page, (_, data) in zip(named, sorted(content.items()), strict=False):
            self._put(page, data)
        if changed is not None:
            self.write(changed)
        with suppress(Refused):
            guest.send_file(made.build(), 0x4000_0000)
            guest.prepared(told, named)

    def say(self, call: KernelCall, number: int) -> None:
        with suppress(Refused):
            self.guest.ask(call, struct.pack("<I", number))

    def store(self, page: int, offset: int, data: bytes, owner: Owner | None) -> None:
        if owner is not None or self.guest.owners.get(page, Owner.KERNEL) is not Owner.KERNEL:
            self.guest.store(page + offset, data, owner=owner)

    def poke(self, page: int) -> None:
        if self.guest.owners.get(page, Owner.KERNEL) is not Owner.KERNEL:
            self.guest.text_poke(page, JUMP)

    def write(self, page: int) -> None:
        self._put(page, bytes(3) + b"\x0f\x30")

    def _put(self, page: int, data: bytes) -> None:
        """What VMPL 3 can write is its own."""
        if self.guest.owners.setdefault(page, Owner.KERNEL) is Owner.KERNEL:
            self.guest.pages[page] = bytearray(data.ljust(PAGE_SIZE, b"\0"))

    def snapshot(self) -> None:
        self.guest.from_snapshot()

    def take(self, page: int) -> None:
        self.guest.taken.add(page)

    def check(self) -> None:
        guest = self.guest
        code = {page for page in _PAGES if guest.owners.get(page) is Owner.MODULE_CODE}
        for page in code - guest.taken:
            assert bytes(guest.pages[page]) in self.verified, f"{page:#x} can be executed"
        status = guest.status()
        known = guest.service._loader.modules
        assert {module.number for module in status.modules} == set(known)
        held = {page for module in known.values() for piece in module.code.values() for page in piece.pages}
        held |= {page for module in known.values() for page in module.leaving}
        assert code - guest.taken <= held, "code that nobody knows of"


@settings(max_examples=examples(100), deadline=None)
@given(_moves)
def test_what_can_be_executed_is_verified(moves: list[tuple[object, ...]]) -> None:
    kernel = _Kernel()
    for name, *arguments in moves:
        move: Callable[..., None] = getattr(kernel, str(name))
        move(*arguments)
        kernel.check()
    for number in range(1, 15):
        kernel.say(KernelCall.MODULE_GONE, number)
    kernel.check()
    left = {page for page in _PAGES if kernel.guest.owners.get(page, Owner.KERNEL) is not Owner.KERNEL}
    assert left <= kernel.guest.taken, "what the host left is the kernel's again"
