# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk image as Debian's cloud images are: GPT, an EFI system partition with Debian's GRUB, a root file system.

Made with Debian's own tools, without a loop device: mmdebstrap installs Debian's packages, `mke2fs -d` and mtools fill
the file systems. It takes minutes, so it is kept in the cache.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.guest.packages import unpacked_package

__all__ = ["HOST_NAME", "PASSWORD", "debian_disk"]

HOST_NAME = "veil-disk"

#: of root, who logs in with it
PASSWORD = "let me in"
#: the same by crypt(5): SHA-512 with as few rounds as there may be, for a software CPU counts them
_PASSWORD_HASH = (
    "$6$rounds=1000$veil$/nZuh4NXdV3rav3QiOHio2S8zdeJM1wQj31Q1bqfPsdfDul0bsGNILepnnmYsSEI51AJ3UpneJud7CPWpEspF/"
)

_SECTOR = 512
_ALIGNMENT = 1 << 20
_ESP_SIZE, _ROOT_SIZE = 64 << 20, 640 << 20
# UEFI specification 2.10, table 5.7; the discoverable partitions specification.
_ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_ROOT_TYPE = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
_ENTRIES, _ENTRY_SIZE = 128, 128

_PACKAGES = ("systemd-sysv", "udev", "linux-image-cloud-amd64", "e2fsprogs")
_SUITE = "bookworm"
_GRUB = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
_COMMAND_LINE = "root=LABEL=root ro console=ttyS0 quiet"
# A busy computer takes longer than the 90 s after which systemd gives a device up, and with it the login there.
_SERIAL_PORT = "[Unit]\nJobRunningTimeoutSec=infinity\n"
_GRUB_CONFIG = f"""search.fs_label root root
set timeout=0
linux ($root)/vmlinuz {_COMMAND_LINE}
initrd ($root)/initrd.img
boot
"""


@dataclass(frozen=True)
class _Partition:
    kind: uuid.UUID
    name: str
    content: Path


def debian_disk(cache: Cache) -> Path:
    """The image, made if need be: read-only, for `tmp` disks."""
    key = cache_key(*_PACKAGES, _SUITE, _GRUB_CONFIG, _PASSWORD_HASH, _SERIAL_PORT)
    return cache.entry("test-disk", key, lambda folder: _make(cache, folder)) / "disk.img"


def _make(cache: Cache, folder: Path) -> None:
    root, esp = folder / "root", folder / "esp"
    _install(cache, root)
    _configure(root)
    _make_root(root, folder / "root.ext4")
    _make_esp(cache, esp)
    write_gpt(
        folder / "disk.img",
        [_Partition(_ESP_TYPE, "esp", esp), _Partition(_ROOT_TYPE, "root", folder / "root.ext4")],
    )
    for name in ("root.ext4", "esp"):
        (folder / name).unlink()
    _run("rm", "-rf", str(root))


def _run(*command: str, **environment: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment}, umask=0o022)


def _install(cache: Cache, root: Path) -> None:
    tool = unpacked_package(cache, "mmdebstrap") / "usr/bin"
    _run(
        "perl", str(tool / "mmdebstrap"), "--variant=minbase", f"--include={','.join(_PACKAGES)}",
        "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*", _SUITE, str(root),
        PATH=f"{tool}:{os.environ['PATH']}",
    )  # fmt: skip


def _configure(root: Path) -> None:
    (root / "etc/hostname").write_text(HOST_NAME + "\n")
    shadow = root / "etc/shadow"
    shadow.write_text(re.sub(r"^root:[^:]*:", f"root:{_PASSWORD_HASH}:", shadow.read_text(), flags=re.MULTILINE))
    settings = root / "etc/systemd/system/dev-ttyS0.device.d"
    settings.mkdir()
    (settings / "timeout.conf").write_text(_SERIAL_PORT)
    (root / "etc/fstab").write_text("LABEL=root / ext4 defaults 0 1\n")


def _make_root(root: Path, image: Path) -> None:
    with open(image, "wb") as stream:
        stream.truncate(_ROOT_SIZE)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", str(root), str(image))


def _make_esp(cache: Cache, image: Path) -> None:
    with open(image, "wb") as stream:
        stream.truncate(_ESP_SIZE)
    tools = unpacked_package(cache, "mtools") / "usr/bin"
    grub = unpacked_package(cache, "grub-efi-amd64-signed") / _GRUB
    config = image.with_name("grub.cfg")
    config.write_text(_GRUB_CONFIG)
    _run(str(tools / "mformat"), "-i", str(image), "-F", "::")
    for folder in ("EFI", "EFI/BOOT", "EFI/debian"):
        _run(str(tools / "mmd"), "-i", str(image), f"::/{folder}")
    # The path that firmware tries of itself, and the one that Debian's GRUB looks at.
    _run(str(tools / "mcopy"), "-i", str(image), str(grub), "::/EFI/BOOT/BOOTX64.EFI")
    _run(str(tools / "mcopy"), "-i", str(image), str(config), "::/EFI/debian/grub.cfg")
    config.unlink()


def write_gpt(path: Path, partitions: Sequence[_Partition]) -> None:
    """A disk with a GUID partition table (UEFI specification 2.10, 5.3) and these partitions, in a sparse file."""
    start, places = _ALIGNMENT, []
    for partition in partitions:
        size = partition.content.stat().st_size
        places.append((partition, start, size))
        start += -(-size // _ALIGNMENT) * _ALIGNMENT
    last = (start + _ALIGNMENT) // _SECTOR - 1
    table = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            partition.kind.bytes_le,
            uuid.uuid5(uuid.NAMESPACE_DNS, partition.name).bytes_le,
            first // _SECTOR,
            (first + size) // _SECTOR - 1,
            0,
            partition.name.encode("utf-16-le"),
        )
        for partition, first, size in places
    ).ljust(_ENTRIES * _ENTRY_SIZE, b"\0")
    sectors = len(table) // _SECTOR
    with open(path, "wb") as disk:
        disk.truncate((last + 1) * _SECTOR)
        disk.write(
            bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, last) + bytes(48) + b"\x55\xaa"
        )
        disk.write(_gpt_header(1, last, 2, last - sectors - 1, table))
        disk.write(table)
        disk.seek((last - sectors) * _SECTOR)
        disk.write(table)
        disk.write(_gpt_header(last, 1, last - sectors, last - sectors - 1, table))
        for partition, first, _ in places:
            disk.seek(first)
            with open(partition.content, "rb") as content:
                while data := content.read(1 << 20):
                    # Holes stay holes.
                    disk.write(data) if any(data) else disk.seek(len(data), os.SEEK_CUR)


def _gpt_header(here: int, other: int, table_at: int, last_usable: int, table: bytes) -> bytes:
    first_usable = 2 + len(table) // _SECTOR
    disk = uuid.uuid5(uuid.NAMESPACE_DNS, HOST_NAME).bytes_le

    def header(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, here, other, first_usable, last_usable, disk,
            table_at, _ENTRIES, _ENTRY_SIZE, zlib.crc32(table),
        )  # fmt: skip

    return header(zlib.crc32(header(0))).ljust(_SECTOR, b"\0")
