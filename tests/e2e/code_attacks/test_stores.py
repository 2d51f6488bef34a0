# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code writes to what is code or read-only: in every way, and everywhere."""

from __future__ import annotations

import pytest

from tests.e2e.code_attacks.guests import EFAULT, VICTIM, CodeGuest
from veil.host import NestedPageFault
from veil.services.kci import KernelCode

#: A function that nobody calls here, system call table, exception table and IDT: each 16 bytes after its beginning.
TEXT, TABLES = "__x64_sys_swapoff", ("sys_call_table", "__start___ex_table", "idt_table")
WAYS = ("direct", "alias", "across", "tables", "wp")


def _refused(guest: CodeGuest, way: str, target: int) -> None:
    before, known = guest.text(target, 8), len(guest.violations())
    assert guest.store(way, target, "0:6666666666666666") == [EFAULT]
    assert guest.text(target, 8) == before
    *_, word = violations = guest.violations()
    assert len(violations) == known + 1
    assert word.detail["address"] == target


@pytest.mark.parametrize("way", WAYS)
def test_text(locked: CodeGuest, code: KernelCode, way: str) -> None:
    target = code.image.symbols[TEXT] + 16
    _refused(locked, way, target)
    assert locked.violations()[-1].detail["symbol"] == f"{TEXT}+0x10"
    assert locked.sh("echo works | wc -c") == (0, "6\n")


@pytest.mark.parametrize("place", TABLES)
@pytest.mark.parametrize("way", WAYS)
def test_tables(locked: CodeGuest, code: KernelCode, place: str, way: str) -> None:
    _refused(locked, way, code.image.symbols[place] + 16)
    assert locked.violations()[-1].detail["symbol"] == f"{place}+0x10"


def _modules_text(guest: CodeGuest) -> int:
    """A function of a module that nobody calls here."""
    return guest.module_text(VICTIM) + 16


@pytest.mark.parametrize("way", WAYS)
def test_a_modules_text(locked: CodeGuest, way: str) -> None:
    _refused(locked, way, _modules_text(locked))
    assert locked.violations()[-1].detail["owner"] == "MODULE_CODE"


def _written(guest: CodeGuest, way: str, target: int) -> None:
    before = guest.text(target, 8)
    assert guest.store(way, target, "0:6666666666666666") == [0]
    assert guest.text(target, 8) == b"f" * 8
    assert guest.store(way, target, f"0:{before.hex()}") == [0]


@pytest.mark.parametrize("way", WAYS)
def test_off_text_is_written(unlocked: CodeGuest, code: KernelCode, way: str) -> None:
    _written(unlocked, way, code.image.symbols[TEXT] + 16)


@pytest.mark.parametrize("place", [*TABLES, "module"])
@pytest.mark.parametrize("way", WAYS)
def test_off_all_else_is_written(unlocked: CodeGuest, code: KernelCode, place: str, way: str) -> None:
    # Of the IDT a vector that does not come.
    offset = 0xFE0 if place == "idt_table" else 16
    _written(unlocked, way, _modules_text(unlocked) if place == "module" else code.image.symbols[place] + offset)


def test_halt(halting: CodeGuest, code: KernelCode) -> None:
    target = code.image.symbols[TEXT] + 16
    before = halting.text(target, 1)
    with pytest.raises(NestedPageFault, match="VMPL 3 has no permission"):
        halting.store("wp", target, "0:66")
    assert halting.text(target, 1) == before


def test_data_is_not_protected(locked: CodeGuest, code: KernelCode) -> None:
    """The program that the kernel starts to have modules loaded is another one from here on."""
    known = len(locked.violations())
    target = code.image.symbols["modprobe_path"]
    assert locked.store("alias", target, f"0:{b'/tmp/intruder'.hex()}00") == [0]
    assert locked.sh("cat /proc/sys/kernel/modprobe") == (0, "/tmp/intruder\n")
    assert len(locked.violations()) == known
