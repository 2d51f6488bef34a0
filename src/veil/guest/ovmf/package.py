# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware that is meant: a file of the user's, or Debian's build for confidential guests, which is fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from veil.cache import Cache
from veil.guest.named_files import read_named_file
from veil.guest.ovmf.metadata import Firmware, parse_firmware
from veil.guest.packages import kept_package, unpacked_package

__all__ = ["DEBIAN_FIRMWARE", "firmware_at_hand", "open_firmware", "read_initrd"]

#: How users name Debian's.
DEBIAN_FIRMWARE = "debian"
_PACKAGE = "ovmf-amdsev"
#: Debian 13's ovmf has the metadata, but does not check the kernel that it is given.
_SUITE = "sid"
_FILE = "usr/share/ovmf/OVMF.amdsev.fd"
_MAX_FILE = 64 << 20
_MAX_INITRD = 1 << 30


def open_firmware(cache: Cache, name: str, progress: Callable[[str], None] | None = None) -> Firmware:
    """The firmware of this name, fetched if need be. Raises GuestImageError."""
    path = Path(name)
    if name == DEBIAN_FIRMWARE:
        path = unpacked_package(cache, _PACKAGE, progress, suite=_SUITE) / _FILE
    return parse_firmware(read_named_file(path, "the firmware", _MAX_FILE), name)


def read_initrd(path: Path) -> bytes:
    """The file that the firmware gets as initrd. Raises GuestImageError."""
    return read_named_file(path, "the initrd", _MAX_INITRD)


def firmware_at_hand(cache: Cache, name: str) -> tuple[str, Path] | None:
    """Name, with the version if it has one, and file; None if it is still to be fetched."""
    if name != DEBIAN_FIRMWARE:
        return name, Path(name)
    key = kept_package(cache, _PACKAGE)
    return None if key is None else (key, cache.manifest("package", key).parent / _FILE)
