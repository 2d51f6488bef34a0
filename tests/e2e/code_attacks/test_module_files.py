# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules for which nobody vouches, and hostile ones for which somebody does: by insmod, and by a driver that lies."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.e2e.code_attacks.guests import VICTIM, CodeGuest, build
from tests.e2e.code_attacks.hostile_files import HOSTILE, body_of, resigned
from tests.e2e.code_attacks.lying_driver import WHERE, LyingDriver
from tests.services.kci.modules.made_module import authority
from veil.formats.kci import FilePart, KernelCall, MemoryType, ModuleMemory, ModulePrepared
from veil.formats.kci_status import CodeEvent
from veil.formats.status import Status
from veil.services.kci import KernelCode, physical_range

PAGE = 4096


@pytest.fixture(scope="module")
def body(locked: CodeGuest) -> bytes:
    """The module of the distribution's, without its signature."""
    ((_, file),) = locked.vm.kernel_modules([VICTIM])
    return body_of(file)


def _files(body: bytes) -> dict[str, tuple[bytes, str]]:
    """File, and what VeilS-KCI says. The stock kernel knows none of these keys, and takes all of them."""
    signed, other = resigned(body), resigned(body_of(resigned(build("attacker"))))
    made: dict[str, tuple[bytes, str]] = {
        "not signed": (body, "is not signed"),
        "changed since": (signed.replace(b"rtnl-link-dummy", b"rtnl-link-dumm.", 1), "not over this file"),
        "another file's signature": (body + other[len(build("attacker")) :], "not over this file"),
        "another key": (resigned(body, authority("intruder", serial=8)), "a key that is not allowed"),
    }
    return made | {what: (resigned(make(body)), why) for what, (make, why) in HOSTILE.items()}


def _insmod(guest: CodeGuest, file: bytes, folder: Path) -> int:
    guest.put("hostile", file, folder)
    return guest.sh("insmod /root/hostile.ko")[0]


def test_by_insmod(locked: CodeGuest, body: bytes, tmp_path: Path) -> None:
    assert _insmod(locked, resigned(body), tmp_path) == 0
    assert locked.sh(f"rmmod {VICTIM}") == (0, "")
    for what, (file, why) in _files(body).items():
        assert _insmod(locked, file, tmp_path), what
        assert locked.sh(f"grep {VICTIM} /proc/modules")[0], what
        if "absurd" not in what:  # so many pages that the driver cannot name them
            *_, word = locked.words()
            assert word.event == CodeEvent.MODULE_REFUSED, what
            assert why in word.words, what
    assert all(module.name != VICTIM for module in locked.status().modules)


def test_off_all_of_them_get_in(unlocked: CodeGuest, body: bytes, tmp_path: Path) -> None:
    for what, (file, _) in _files(body).items():
        assert _insmod(unlocked, file, tmp_path) == 0, what
        assert unlocked.sh(f"rmmod {VICTIM}") == (0, ""), what


def _refused(guest: CodeGuest, why: str) -> None:
    *_, word = guest.words()
    assert word.event == CodeEvent.MODULE_REFUSED
    assert why in word.words


def test_by_a_driver_that_lies(locked: CodeGuest, code: KernelCode, body: bytes) -> None:
    driver = LyingDriver(locked)
    for what, (file, why) in _files(body).items():
        driver.file(file)
        assert driver.prepared(body, driver.pages) == Status.NOT_ALLOWED, what
        _refused(locked, why)
    # A good file, and memory that is not what it makes: pages of zeros, text of the kernel's, too few, absurdly many.
    text = physical_range(code.image, code.range).start
    for pages, why in (
        (driver.pages, "not"),
        ([text + PAGE * number for number in range(8)], "cannot be taken"),
        (driver.pages[:2], "were named"),
    ):
        driver.file(resigned(body))
        assert driver.prepared(body, pages) == Status.NOT_ALLOWED
        _refused(locked, why)
    # A file is used once; and lengths that no memory has.
    assert driver.prepared(body, driver.pages) == Status.NOT_ALLOWED
    _refused(locked, "is not the next one")
    for length, offset in ((1 << 63, 0), ((1 << 64) - 1, 0), (0, 0), (PAGE, 1 << 63), (PAGE, PAGE - 1)):
        part = FilePart(length, offset).pack()
        assert driver.ask(KernelCall.MODULE_FILE, part, driver.pages[:1]) == Status.NOT_ALLOWED
        somewhere = ModulePrepared(0, {MemoryType.TEXT: ModuleMemory(WHERE, PAGE)}).pack()
        assert driver.ask(KernelCall.MODULE_PREPARED, part + somewhere, driver.pages[:1]) == Status.NOT_ALLOWED
    file = FilePart(PAGE, 0).pack()
    everywhere = ModulePrepared(0, {MemoryType.TEXT: ModuleMemory((1 << 64) - PAGE, PAGE)}).pack()
    assert driver.ask(KernelCall.MODULE_PREPARED, file + everywhere, driver.pages[:2]) == Status.NOT_ALLOWED
    absurd = struct.pack("<15Q", 0, 0, 1 << 62, *(0 for _ in range(12)))
    assert driver.ask(KernelCall.MODULE_PREPARED, file + absurd, driver.pages[:2]) == Status.BAD_REQUEST
    assert driver.ask(KernelCall.MODULE_PREPARED, file[:-1], driver.pages[:1]) == Status.BAD_REQUEST
    # Modules that there are not.
    for call in (KernelCall.MODULE_LIVE, KernelCall.MODULE_GONE):
        assert driver.ask(call, struct.pack("<I", 0x666), []) == Status.NOT_ALLOWED
    assert locked.sh("echo works") == (0, "works\n")
