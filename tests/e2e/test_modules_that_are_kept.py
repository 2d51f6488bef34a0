# SPDX-License-Identifier: GPL-2.0-or-later
"""A module leaves or is refused, and VeilS-KCI does not give its pages back: the host keeps VeilMon from it, say."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.locked_guest import LockedGuest
from tests.e2e.snapshots import LOCKED_KERNEL, Resume
from veil.formats.status import Status
from veil.services.context import MonitorRefused
from veil.services.kci import module_calls
from veil.services.kci.errors import KciError
from veil.services.kci.module_calls import ModuleCalls

#: Writes to most of what is free, what was given back last first.
FILL = """mount -t tmpfs -o size=90% none /mnt
free=$(awk '/MemAvailable/ {print int($2 / 1024 * 3 / 4)}' /proc/meminfo)
dd if=/dev/zero of=/mnt/fill bs=1M count=$free && rm /mnt/fill
"""


class _Guest(LockedGuest):
    def sh(self, command: str) -> str:
        done = self.vm.run(["sh", "-c", command], timeout=120)
        assert done.exit_status == 0, (done.stdout + done.stderr).decode()
        return done.stdout.decode()

    @property
    def kept(self) -> int:
        """Pages that nobody uses any more."""
        found = re.search(r"^kci .* kept (\d+)", self.sh("cat /dev/veil"), re.MULTILINE)
        assert found is not None
        return int(found[1])


@pytest.fixture
def guest(resume: Resume, tmp_path: Path) -> _Guest:
    vm = resume(vcpus=2, services=LOCKED_KERNEL)
    for name, module in vm.kernel_modules(["dummy"]):
        (tmp_path / name).write_bytes(module)
        vm.copy_in(tmp_path / name, "/root/dummy.ko")
    return _Guest(vm)


def _refuse(monkeypatch: pytest.MonkeyPatch, call: str, times: int) -> list[int]:
    """The first so many of the driver's calls; numbers of the modules of all of them."""
    honest, asked = getattr(ModuleCalls, call), list[int]()

    def refused(calls: ModuleCalls, number: int) -> Generator[Any, Any, None]:
        asked.append(number)
        if len(asked) <= times:
            raise KciError("the host keeps a page")
        yield from honest(calls, number)

    monkeypatch.setattr(ModuleCalls, call, refused)
    return asked


@pytest.mark.parametrize("call", ["live", "gone"])
def test_what_is_not_given_back_is_used_no_more(guest: _Guest, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    asked = _refuse(monkeypatch, call, 2)
    guest.sh("insmod /root/dummy.ko && rmmod dummy")
    assert asked[0] == asked[1], "the driver asks again"
    assert guest.kept > 0
    assert "VeilS-KCI does not give pages of module dummy back (-1)" in guest.sh("dmesg")
    guest.sh(FILL)
    assert guest.status().violations == 0


def test_a_refusal_that_passes(guest: _Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _refuse(monkeypatch, "gone", 1)
    guest.sh("insmod /root/dummy.ko && rmmod dummy")
    assert len(asked) == 2
    assert guest.kept == 0
    guest.sh(FILL)
    status = guest.status()
    assert status.violations == 0
    assert "dummy" not in {module.name for module in status.modules}


def test_what_a_refused_module_had(guest: _Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody vouches for it, and what was taken to look at it is not given back."""

    def keeps(*_: object) -> Generator[Any, Any, None]:
        raise MonitorRefused(Status.UNAVAILABLE, "the host keeps a page")
        yield

    monkeypatch.setattr(module_calls, "give_back", keeps)
    assert "Input/output error" in guest.sh("echo >>/root/dummy.ko; insmod /root/dummy.ko 2>&1 || true")
    assert guest.kept > 0
    monkeypatch.undo()
    guest.sh(FILL)
    status = guest.status()
    assert status.violations == 0
    assert status.refused > 0


def test_a_refused_module_whose_pages_are_given_back(guest: _Guest) -> None:
    assert "not permitted" in guest.sh("echo >>/root/dummy.ko; insmod /root/dummy.ko 2>&1 || true")
    assert guest.kept == 0
    guest.sh(FILL)
    assert guest.status().violations == 0
