# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that run when a snapshot is made run in its copies, however many were made of each other, and whatever the
kernel said meanwhile."""

from __future__ import annotations

import struct

import pytest

from tests.services.kci.module_guest import EXPORTER, JUMP, LABELLED, ModuleGuest
from veil.formats.kci import FilePart, KernelCall, MemoryType
from veil.formats.page_owners import Owner


@pytest.fixture
def guest() -> ModuleGuest:
    return ModuleGuest()


def _names(guest: ModuleGuest) -> list[str]:
    return [module.name for module in guest.status().modules]


def _is_guarded(guest: ModuleGuest, number: int, text: int) -> None:
    """It patches itself, and goes."""
    assert guest.text_poke(text, JUMP)
    assert guest.pages[text][:5] == JUMP
    guest.ask(KernelCall.MODULE_GONE, struct.pack("<I", number))
    assert guest.owners[text] is Owner.KERNEL
    assert guest.status().violations == 0


def _pair(guest: ModuleGuest) -> tuple[int, int, int]:
    """The exporter's number; that of the module that uses it, and where its text is."""
    exporter, _ = guest.load(EXPORTER)
    number, pages = guest.load(LABELLED, 1)
    return exporter, number, pages[MemoryType.TEXT]


@pytest.mark.parametrize("snapshots", [0, 1, 2, 3])
def test_copies_of_copies(guest: ModuleGuest, snapshots: int) -> None:
    """Nobody asks for modules between two snapshots: what follows from their files is not derived then."""
    _, number, text = _pair(guest)
    for _ in range(snapshots):
        guest.from_snapshot()
    _is_guarded(guest, number, text)
    assert _names(guest) == ["exporter"]


@pytest.mark.parametrize("snapshots", [0, 1, 2])
def test_the_kernel_says_that_what_a_module_uses_is_gone(guest: ModuleGuest, snapshots: int) -> None:
    """Linux never does. The module is linked as it was, and others after it are there, too."""
    exporter, number, text = _pair(guest)
    guest.ask(KernelCall.MODULE_GONE, struct.pack("<I", exporter))
    again, _ = guest.load(EXPORTER, 2)
    for _ in range(snapshots):
        guest.from_snapshot()
    assert _names(guest) == ["made", "exporter"]
    _is_guarded(guest, number, text)
    guest.ask(KernelCall.MODULE_GONE, struct.pack("<I", again))
    assert Owner.MODULE_CODE not in guest.owners.values()


def test_the_snapshot_comes_between_two_parts_of_a_file(guest: ModuleGuest) -> None:
    guest.load(EXPORTER)
    file = LABELLED.build().ljust(5000, b"\0")
    pages = guest.put(0x4000_0000, file)
    guest.ask(KernelCall.MODULE_FILE, FilePart(len(file), 0).pack(), pages[:1])
    guest.from_snapshot()
    guest.ask(KernelCall.MODULE_FILE, FilePart(len(file), 4096).pack(), pages[1:])
