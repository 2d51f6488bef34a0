# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with disks of each kind, a network card, and little memory, so that a disk to swap to is of use."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.snapshots import RunSnapshots
from veil.cvm import ConfidentialVM, Configuration
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.kci_settings import OFF, KciSettings
from veil.image.services_image import protected_services

__all__ = ["CONTENT", "NETWORK", "disk_guest", "disk_image"]

#: To be named when it is restored; ports may be forwarded then.
NETWORK = "user"
_SIZE = 4 << 20
CONTENT = b"".join(hashlib.sha256(b"%d" % n).digest() * 16 for n in range(_SIZE // 512))


@pytest.fixture(scope="session")
def disk_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with `CONTENT`."""
    base = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist share the snapshot, so they share its image.
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "disk.img"
    if not path.exists():
        new = path.with_name(f"disk.{os.getpid()}")
        new.write_bytes(CONTENT)
        os.utime(new, ns=(0, 0))
        with suppress(FileExistsError):
            os.link(new, path)
        new.unlink()
    return path


def disk_guest(snapshots: RunSnapshots, image: Path, *, monitor: bool = True) -> tuple[Path, list[str]]:
    """A snapshot of a guest, and the disks that it was booted with: one to read, a copy in which something was written,
    an empty one. With VeilMon it has enclaves, too."""
    disks = [str(image), f"{image},tmp", "scratch:512M"]
    # Code integrity's copy of the kernel takes some 50 MiB.
    memory = "192M" if KciSettings().mode == OFF else "256M"
    services = protected_services(EncSettings(mode=ON)) if monitor else None
    configuration = Configuration.make(memory, monitor=monitor, services=services, disks=disks, network=NETWORK)

    def boot(path: Path) -> None:
        with ConfidentialVM(configuration, fresh=True) as vm:
            assert vm.run(["sh", "-c", "echo kept | dd of=/dev/vdb bs=512 conv=sync; sync"]).exit_status == 0
            vm.snapshot(path)

    return snapshots.once(f"disks-{monitor}", boot), disks
