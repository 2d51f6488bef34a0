# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted guests, and as many copies of them as tests want to break."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

import pytest

from tests.e2e.disk_guest import disk_image
from tests.e2e.idle_time import let_idle_time_pass
from tests.e2e.log_guest import small_log
from tests.e2e.snapshots import OPEN_KERNEL, Resume, RunSnapshots, keep_copy
from tests.services.kci.debian_image import derived_once
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.configuration import Settings
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.debian_programs import debian_programs

__all__ = ["disk_image"]

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder is an e2e test."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session", autouse=True)
def kernel_derived_once() -> Iterator[None]:
    """By the services of all guests in this process."""
    with derived_once():
        yield


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> RunSnapshots:
    """The guests that this test run has booted."""
    base = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have a folder each, in that of the run.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "booted"
    folder.mkdir(exist_ok=True)
    return RunSnapshots(folder)


@pytest.fixture(scope="session")
def booted(snapshots: RunSnapshots) -> Path:
    """A snapshot of the default guest."""
    return snapshots.of(Configuration.make())


@pytest.fixture(scope="session")
def kept(booted: Path) -> None:
    """The default guest is in the user's cache, so that no command has to boot it."""
    place = ConfidentialVM()._snapshot_path()
    if place is None or not place.exists():
        keep_copy(booted, Configuration.make())


@pytest.fixture(scope="session")
def auditd() -> Mapping[str, Node]:
    """Debian's own programs for audit, as files of a guest."""
    return debian_programs(Cache(), ["auditd"], ["sbin/auditctl", "sbin/ausearch", "sbin/aureport"])


@pytest.fixture(scope="session")
def audit_guest(auditd: Mapping[str, Node]) -> Settings:
    """A guest with these programs, and a log that stops it when it is full, after some thousand records."""
    return {"services": small_log("halt"), "files": auditd}


@pytest.fixture
def idle_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait for a guest's timers, and for nothing else."""
    let_idle_time_pass(monkeypatch)


@pytest.fixture
def resume(snapshots: RunSnapshots, request: pytest.FixtureRequest) -> Iterator[Resume]:
    """Makes copies of a guest, the default one or one with other settings; each is the test's own."""
    open_kernel = request.node.get_closest_marker("open_kernel") is not None
    made: list[ConfidentialVM] = []

    def make(memory: str = "512M", vcpus: int = 1, **settings: Unpack[Settings]) -> ConfidentialVM:
        if open_kernel:
            settings.setdefault("services", OPEN_KERNEL)
        made.append(ConfidentialVM.restore(snapshots.of(Configuration.make(memory, vcpus, **settings))))
        return made[-1]

    yield make
    for vm in made:
        vm.close()


@pytest.fixture
def vm(resume: Resume) -> ConfidentialVM:
    """A copy of the default guest."""
    return resume()
