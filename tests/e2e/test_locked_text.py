# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel that the test locks down. (`test_locked_workload.py` has one that works on, and patches itself.)"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.e2e.locked_guest import LockedGuest, services
from veil.cli.kci.commands import status_lines
from veil.cvm import ConfidentialVM
from veil.cvm.assembly import Assembly
from veil.formats.kci import KernelCall
from veil.formats.kci_status import CodeEvent
from veil.remote.channel.client import RequestFailed
from veil.services.kci import lock_down
from veil.services.kci.service import KciService
from veil.snp import Permission, RmpViolation

PAGE = 4096


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that is not locked down yet."""
    path = tmp_path_factory.mktemp("snapshots") / "booted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Assembly, "_driver", lambda self, kernel: None)
        with ConfidentialVM(services=services(), vcpus=2, fresh=True) as vm:
            vm.snapshot(path)
    return path


@pytest.fixture(scope="module")
def locked(booted: Path) -> Path:
    guest = LockedGuest.restore(booted)
    guest.lock_down()
    path = booted.parent / "locked"
    guest.vm.snapshot(path)
    guest.vm.close()
    return path


@pytest.fixture
def restore() -> Iterator[Callable[[Path], LockedGuest]]:
    made: list[LockedGuest] = []

    def make(path: Path) -> LockedGuest:
        made.append(LockedGuest.restore(path))
        return made[-1]

    yield make
    for guest in made:
        guest.vm.close()


def test_only_verified_code_can_be_executed(locked: Path, restore: Callable[[Path], LockedGuest]) -> None:
    guest = restore(locked)
    permissions = guest.vm.machine.rmp.effective()["perms"][:, 3]
    executable = np.flatnonzero(permissions & int(Permission.SX))
    status = guest.status()
    assert len(executable) == status.text_pages > 4000
    assert not (permissions[executable] & int(Permission.W)).any()
    assert status.locked_ns is not None
    assert status.explained["alternative"] > 1000
    assert status.violations == 0
    assert [word.event for word in guest.words()] == [CodeEvent.LOCKED]


def test_lock_down_is_once(locked: Path, restore: Callable[[Path], LockedGuest]) -> None:
    guest = restore(locked)
    with pytest.raises(RequestFailed, match="again"):
        guest.lock_down()
    assert guest.status().violations == 1
    assert guest.words()[-1].event == CodeEvent.VIOLATION


def test_text_does_not_change_while_it_is_locked_down(
    booted: Path, restore: Callable[[Path], LockedGuest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two steps of the service's other VCPUs of the kernel run: from the first step on none of them writes."""
    guest = restore(booted)
    view, place = guest.vm.machine.view(vmpl=3), 0x1000000 + 0x123456
    refused: list[bool] = []
    original = KciService._lock_down

    def watched(service: KciService) -> Generator[Any, Any, bytes]:
        work: Any = original(service)
        answer: Any = None
        while True:
            try:
                ask = work.send(answer)
            except StopIteration as stop:
                return cast(bytes, stop.value)
            answer = yield ask
            try:
                view.write_u8(place, view.read_u8(place))
            except RmpViolation:
                refused.append(True)
            else:
                refused.append(False)

    monkeypatch.setattr(KciService, "_lock_down", watched)
    guest.lock_down()
    assert len(refused) > 2
    assert all(refused)


def test_the_host_takes_text_away_while_it_is_locked_down(
    booted: Path, restore: Callable[[Path], LockedGuest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not there cannot be read: lock-down is refused for good, and the log says why."""
    guest = restore(booted)
    host, place = guest.vm.machine.host_view(), 0x1000000 + 0x123000
    original = lock_down._explain

    def explain(*arguments: Any) -> Any:
        host.psmash(place & -(2 << 20))
        host.rmpupdate(place, assigned=False)
        return original(*arguments)

    monkeypatch.setattr(lock_down, "_explain", explain)
    with pytest.raises(RequestFailed, match="not locked down: the host took memory away"):
        guest.lock_down()
    (word,) = guest.words()
    assert word.event is CodeEvent.NOT_LOCKED
    assert f"{place:#x}" in word.words
    # All the rest of it is the kernel's to patch, as before.
    text = guest.vm.machine.rmp.effective()["perms"][0x1000000 // PAGE :, 3][:4000]
    assert np.flatnonzero(text & int(Permission.W) == 0).tolist() == [(place - 0x1000000) // PAGE]
    with pytest.raises(RequestFailed, match="again"):
        guest.lock_down()


def test_a_lock_down_that_nobody_asks_for(booted: Path, restore: Callable[[Path], LockedGuest]) -> None:
    """Nothing is protected, nothing is claimed, and users see it."""
    guest = restore(booted)
    status = guest.status()
    assert (status.mode, status.locked_ns, status.text_pages) == ("on", None, 0)
    assert next(iter(status_lines(status))).startswith("NOT LOCKED DOWN")
    assert guest.words() == []
    permissions = guest.vm.machine.rmp.effective()["perms"][:, 3]
    both = int(Permission.SX | Permission.W)
    assert np.count_nonzero((permissions & both) == both) > 100_000


def test_a_changed_kernel_is_not_locked(booted: Path, restore: Callable[[Path], LockedGuest]) -> None:
    guest = restore(booted)
    place = 0x1000000 + 0x123456
    view = guest.vm.machine.view(vmpl=3)
    before = view.read_u8(place)
    view.write_u8(place, before ^ 1)
    with pytest.raises(RequestFailed, match=f"not locked down: 1 bytes .* {0xFFFFFFFF81000000 + 0x123456:#x} "):
        guest.lock_down()
    assert guest.status().locked_ns is None
    assert [word.event for word in guest.words()] == [CodeEvent.NOT_LOCKED]
    view.write_u8(place, before)
    with pytest.raises(RequestFailed, match="again"):
        guest.lock_down()
    assert guest.vm.run(["true"], timeout=30).exit_status == 0
    # Modules are the kernel's own affair from here on.
    assert guest.ask(KernelCall.MODULE_PREPARED, b"") == bytes(4)
    assert guest.status().refused == 0
