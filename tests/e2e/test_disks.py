# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a guest: Debian's own driver finds them, and what is on them is the host's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.disk_guest import CONTENT, NETWORK, disk_guest
from tests.e2e.snapshots import RunSnapshots
from veil.cvm import ConfidentialVM, Disk
from veil.errors import VeilError


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.soak)], ids=["VeilMon", "no monitor"])
def named(request: pytest.FixtureRequest, snapshots: RunSnapshots, disk_image: Path) -> tuple[Path, list[str]]:
    return disk_guest(snapshots, disk_image, monitor=request.param)


@pytest.fixture
def vm(named: tuple[Path, list[str]]) -> Iterator[ConfidentialVM]:
    path, disks = named
    with ConfidentialVM.restore(path, disks=disks, network=NETWORK) as vm:
        yield vm


def _run(vm: ConfidentialVM, script: str) -> str:
    done = vm.run(["sh", "-c", script])
    assert done.exit_status == 0, done.stderr
    return done.stdout.decode().strip()


def test_disks_of_every_kind(vm: ConfidentialVM, disk_image: Path) -> None:
    """In one guest, since it takes its time to come up."""
    assert _run(vm, "cat /sys/block/vda/ro /sys/block/vdb/ro /sys/block/vda/serial").split() == ["1", "0", "veil-0"]
    assert _run(vm, "sha256sum < /dev/vda").split()[0] == hashlib.sha256(CONTENT).hexdigest()
    assert vm.run(["dd", "if=/dev/zero", "of=/dev/vda", "count=1"]).exit_status != 0
    # What was written before the snapshot is still there, and the image is as it was.
    written = b"kept\n".ljust(512, b"\0")
    expected = hashlib.sha256(written + CONTENT[512:]).hexdigest()
    assert _run(vm, "dd if=/dev/vdb iflag=direct bs=64k 2>/dev/null | sha256sum").split()[0] == expected
    assert disk_image.read_bytes() == CONTENT
    # More than one request at a time, and more than the bounce buffers hold.
    _run(vm, "dd if=/dev/urandom of=/tmp/data bs=1M count=12 2>/dev/null; cat /tmp/data > /dev/vdc; sync")
    _run(vm, "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vdc bs=1M count=12 2>/dev/null | cmp - /tmp/data")
    _run(vm, "mkswap /dev/vdc; swapon /dev/vdc; grep -q vdc /proc/swaps; swapoff /dev/vdc")


def test_a_disk_that_was_changed_is_refused(named: tuple[Path, list[str]], disk_image: Path) -> None:
    path, disks = named
    other = disk_image.with_name("changed.img")
    other.write_bytes(CONTENT)
    with pytest.raises(VeilError, match=r"changed\.img was changed since the snapshot") as caught:
        ConfidentialVM.restore(path, disks=[str(other), *disks[1:]], network=NETWORK)
    assert "\n" not in str(caught.value)
    with pytest.raises(VeilError, match="to be named with `disks`"):
        ConfidentialVM.restore(path)


def test_a_guest_that_writes_an_image_is_not_kept(disk_image: Path) -> None:
    assert ConfidentialVM(disks=[Disk(str(disk_image), "write")])._snapshot_path() is None
