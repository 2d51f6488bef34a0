# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel-mode code writes data that nobody may write any more: tables of modules, the page that all processes share."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.code_attacks.guests import EFAULT, CodeGuest
from tests.e2e.running_kernel import RunningKernel
from veil.services.kci import KernelCode

#: A module of the distribution's that has all three kinds of tables: read-only, of exceptions, read-only after init.
_MODULE = "vhost"
_SECTIONS = (".rodata", "__ex_table", "__jump_table")
#: Where the page of zeros is read by few.
_SELDOM = 4080


def _insert(guest: CodeGuest, folder: Path) -> None:
    """With what it needs."""
    for name, data in guest.vm.kernel_modules([_MODULE]):
        guest.put(name, data, folder)
        assert guest.sh(f"insmod /root/{name}.ko") == (0, "")


def _section(guest: CodeGuest, name: str, module: str = _MODULE) -> int:
    status, address = guest.sh(f"cat /sys/module/{module}/sections/{name}")
    assert status == 0
    return int(address, 16)


def _write(guest: CodeGuest, target: int) -> int:
    """The attacker's result of a write there, through a mapping of its own that is writable."""
    memory = RunningKernel(guest.vm)
    before = memory.read(target, 8)
    results = guest.store("alias", target, f"0:{bytes(byte ^ 0x55 for byte in before).hex()}")
    # Before anything uses what was written.
    wrong = memory.read(target, 8) != before
    guest.vm.machine.view(vmpl=0).write(memory.translate(target), before)
    assert results is not None
    assert wrong == (results == [0])
    return results[0]


def test_tables_of_modules(locked: CodeGuest, tmp_path: Path) -> None:
    _insert(locked, tmp_path)
    known = locked.status().violations
    for count, name in enumerate(_SECTIONS, 1):
        assert _write(locked, _section(locked, name)) == EFAULT, name
        status = locked.status()
        assert status.violations == known + count
        assert f"a write to KERNEL_RODATA ({_MODULE}:" in status.words[-1]
        assert "RIP attacker:" in status.words[-1]
    # Those of the driver, which was there before lock-down.
    assert _write(locked, _section(locked, ".rodata", "veil")) == EFAULT
    # Its variables are its own; and all of it goes with the module.
    assert _write(locked, _section(locked, ".data")) == 0
    place = RunningKernel(locked.vm).translate(_section(locked, ".rodata"))
    assert locked.sh(f"rmmod {_MODULE}") == (0, "")
    locked.vm.machine.view(vmpl=3).write(place, bytes(8))


def test_the_page_of_zeros(locked: CodeGuest, code: KernelCode) -> None:
    target = code.image.symbols["empty_zero_page"] + _SELDOM
    assert _write(locked, target) == EFAULT
    assert RunningKernel(locked.vm).read(target, 8) == bytes(8)
    assert "empty_zero_page" in locked.status().words[-1]


def test_off_all_of_it_is_written(unlocked: CodeGuest, code: KernelCode, tmp_path: Path) -> None:
    _insert(unlocked, tmp_path)
    for name in _SECTIONS:
        assert _write(unlocked, _section(unlocked, name)) == 0, name
    assert _write(unlocked, code.image.symbols["empty_zero_page"] + _SELDOM) == 0
