# SPDX-License-Identifier: GPL-2.0-or-later
"""A VCPU is refused a store while a request for a module is served on another one, and is decided about after it: its
page is no longer what it was when VeilMon asked. A kernel that switches a static key while a module comes does so."""

from __future__ import annotations

import struct

import pytest

from tests.services.kci.module_guest import EXPORTER, JUMP, LABELLED, ModuleGuest
from veil.formats.kci import KernelCall, MemoryType
from veil.formats.page_owners import Owner
from veil.formats.service_events import Decision


@pytest.fixture
def guest() -> ModuleGuest:
    made = ModuleGuest()
    made.load(EXPORTER)
    return made


def test_the_module_was_admitted(guest: ModuleGuest) -> None:
    """What was checked then is code now, and patched by its rules; with what is legal, and nothing else."""
    _, pages = guest.load(LABELLED, 1)
    text = pages[MemoryType.TEXT]
    assert guest.store(text, b"\xcc", owner=Owner.KERNEL_RODATA).decision is Decision.RESUME
    assert guest.pages[text][:1] == b"\xcc"
    assert guest.store(text + 1, JUMP[1:]).decision is Decision.RESUME
    assert guest.status().violations == 0
    assert guest.store(text, b"\x90", owner=Owner.KERNEL_RODATA).decision is Decision.INJECT
    assert guest.store(text + 8, b"\x90", owner=Owner.KERNEL_RODATA).decision is Decision.INJECT
    assert guest.pages[text][8] == 0xC3
    assert guest.status().violations == 2


@pytest.mark.parametrize("owner", [Owner.KERNEL_RODATA, Owner.MODULE_CODE])
def test_its_page_is_the_kernels_again(guest: ModuleGuest, owner: Owner) -> None:
    """The store is tried again, and nobody refuses it."""
    number, pages = guest.load(LABELLED, 1)
    guest.ask(KernelCall.MODULE_GONE, struct.pack("<I", number))
    text = pages[MemoryType.TEXT]
    assert guest.owners[text] is Owner.KERNEL
    before = bytes(guest.pages[text])
    verdict = guest.store(text, b"\xcc", owner=owner)
    assert verdict.decision is Decision.RESUME
    assert verdict.registers is not None
    assert verdict.registers.rip == 0xFFFF888000001000, "the same instruction"
    assert guest.pages[text] == before
    assert guest.status().violations == 0


def test_read_only_data_stays_what_it_is(guest: ModuleGuest) -> None:
    _, pages = guest.load(LABELLED, 1)
    for kind in (MemoryType.RODATA, MemoryType.INIT_TEXT):
        for owner in (Owner.KERNEL_RODATA, Owner.MODULE_CODE):
            assert guest.store(pages[kind], b"\xcc", owner=owner).decision is Decision.INJECT
