# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are booted once for a test run, whichever of its processes wants them first, and copied by all."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol, Unpack

import pytest

from tests.services.kci.modules.made_module import authority
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.configuration import Settings
from veil.cvm.kept_snapshots import read_cvm
from veil.formats.kci_settings import OFF, ON, KciSettings, certificate_text
from veil.host import RunResult
from veil.image.services_image import ServicesImage, protected_services
from veil.monitor import VeilMon

__all__ = [
    "EXCEPTION", "EXCEPTION_OF_MODULE", "LOCKED_KERNEL", "OPEN_KERNEL", "Resume", "RunSnapshots", "boots", "halfway",
    "keep_copy", "linked_cache", "locking_services", "short_boots",
]  # fmt: skip

#: Services that leave the kernel as it is, whatever VEIL_KCI says.
OPEN_KERNEL = protected_services(KciSettings(mode=OFF))


#: What the kernels of `locking_services` may write of their read-only data: the operations of /dev/full.
EXCEPTION = "full_fops"
#: And of a module's.
EXCEPTION_OF_MODULE = "dummy/dummy_netdev_ops"


def locking_services(mode: str) -> ServicesImage:
    """Services that lock the kernel down, and admit modules that the tests' authority has signed."""
    settings = KciSettings(
        mode=mode, certificates=(certificate_text(authority().der),), writable=(EXCEPTION, EXCEPTION_OF_MODULE)
    )
    return protected_services(settings)


LOCKED_KERNEL = locking_services(ON)


class Resume(Protocol):
    """The fixture `resume`."""

    def __call__(self, memory: str = ..., vcpus: int = ..., **settings: Unpack[Settings]) -> ConfidentialVM: ...


class RunSnapshots:
    """Snapshots by name, in a folder that the processes of one test run share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, configuration: Configuration) -> Path:
        """The snapshot of a guest that was booted for this run."""

        def boot(path: Path) -> None:
            with ConfidentialVM(configuration, fresh=True) as vm:
                vm.snapshot(path)

        return self.once(configuration.key(), boot)

    @contextmanager
    def booting(self, configuration: Configuration) -> Iterator[ConfidentialVM]:
        """A guest that boots for the caller, whose snapshot others get by `of`."""
        with ConfidentialVM(configuration, fresh=True) as vm:
            self.once(configuration.key(), vm.snapshot)
            yield vm

    def begun(self, configuration: Configuration) -> Path:
        """The snapshot of a guest (for `halfway`) whose driver is being loaded: VeilMon has its request blocks, and no
        service has been asked."""

        def begin(path: Path) -> None:
            with closing(ConfidentialVM(configuration, fresh=True)) as vm:
                vm.launch()
                place = vm.hypervisor.vcpus[0].contexts[0].vmcb.vmsa_pa

                def is_there() -> bool:
                    monitor = vm.machine.hosted_program(place)
                    return (
                        isinstance(monitor, VeilMon)
                        and monitor._state is not None
                        and len(monitor._state.blocks) == configuration.vcpus
                    )

                assert vm.hypervisor.run(until=is_there, timeout=600) is RunResult.DONE
                vm.snapshot(path)

        return self.once(f"begun-{configuration.key()}", begin)

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A snapshot that `make(path)` writes, in the first process that asks for it."""
        path = self._folder / f"{name}.snapshot"
        lock = os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(path)
        finally:
            os.close(lock)
        return path


def keep_copy(snapshot: Path, configuration: Configuration, cache: Cache | None = None) -> Path:
    """Put a copy of a guest of this configuration where a CVM looks for one in a cache; the place."""
    place = ConfidentialVM(configuration, cache=cache)._snapshot_path()
    assert place is not None
    # Another process may be reading the one that is there.
    new = place.with_name(f"{place.name}.{os.getpid()}")
    new.touch(0o600)
    subprocess.run(["cp", "--sparse=always", snapshot, new], check=True)
    return new.replace(place)


@contextmanager
def halfway(path: Path, services: ServicesImage | None = None) -> Iterator[ConfidentialVM]:
    """A copy of a guest whose snapshot was made while it booted: `connect` goes on with that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfidentialVM, "connect", lambda vm: None)
        vm = ConfidentialVM.restore(path, services=services)
    with closing(vm):
        yield vm


@contextmanager
def short_boots(booted: Path) -> Iterator[None]:
    """CVMs that boot meanwhile are there at once, as this snapshot is."""

    def boot(vm: ConfidentialVM) -> None:
        vm._take_over(read_cvm(booted, vm.configuration.services))
        vm.boot_seconds = 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfidentialVM, "_boot", boot)
        yield


def boots(vm: ConfidentialVM) -> bool:
    """Does it boot when it starts? Then it is not waited for; else it resumes."""
    began: list[None] = []

    class _Boots(Exception):
        """It does."""

    def boot() -> None:
        began.append(None)
        raise _Boots

    with pytest.MonkeyPatch.context() as patch, suppress(_Boots):
        patch.setattr(vm, "_boot", boot)
        with vm:
            assert vm.run(["true"]).exit_status == 0
    return bool(began)


def linked_cache(root: Path) -> Cache:
    """A cache with all that the user's own has, but no snapshots."""
    root.mkdir()
    for item in Cache().root.iterdir():
        if item.name not in ("snapshots", "tmp", "locks"):
            (root / item.name).symlink_to(item)
    return Cache(root)
