# SPDX-License-Identifier: GPL-2.0-or-later
"""What the board tells firmware by fw_cfg: its memory, processors and tables, and what there is to boot.

The numbers and names are QEMU's (include/standard-headers/linux/qemu_fw_cfg.h, hw/i386/fw_cfg.c).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from veil.formats.board import q35_pci_memory
from veil.host.devices.firmware.table_loader import acpi_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["BoardContents", "BootItems", "board_contents"]

_RAM_SIZE, _PROCESSORS, _MAX_PROCESSORS = 0x03, 0x05, 0x0F
_KERNEL_SIZE, _KERNEL, _SETUP_SIZE, _SETUP = 0x08, 0x11, 0x17, 0x18
_INITRD_SIZE, _INITRD = 0x0B, 0x12
_COMMAND_LINE_SIZE, _COMMAND_LINE = 0x14, 0x15

#: In a bzImage: how many sectors of 512 bytes its real-mode part has beside the first (Linux, boot.rst, "setup_sects").
_SETUP_SECTORS, _SECTOR, _DEFAULT_SECTORS = 0x1F1, 512, 4
_E820_RAM = 1


@dataclass(frozen=True)
class BootItems:
    """A bzImage, its initrd and its command line, which ends with a NUL."""

    kernel: bytes = field(default=b"", repr=False)
    initrd: bytes = field(default=b"", repr=False)
    command_line: bytes = b""


@dataclass(frozen=True)
class BoardContents:
    """What `FirmwareConfig` offers: by number, and by name."""

    items: Mapping[int, bytes] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    pci_memory: tuple[int, int]
    """What the PCI host bridge decodes, as the tables in `files` say: (first, last + 1)."""


def board_contents(memory: int, ram: Sequence[tuple[int, int]], vcpus: int, boot: BootItems | None) -> BoardContents:
    """Of a board with `memory` bytes; `ram`: (GPA, length) of each piece that the guest may use.

    Without `boot` the firmware boots from a disk.
    """
    items = {
        _RAM_SIZE: struct.pack("<Q", memory),
        _PROCESSORS: struct.pack("<H", vcpus),
        _MAX_PROCESSORS: struct.pack("<H", vcpus),
    }
    boot = boot or BootItems()
    kernel, split = boot.kernel, _setup_size(boot.kernel)
    blobs = (
        (_SETUP_SIZE, _SETUP, kernel[:split]),
        (_KERNEL_SIZE, _KERNEL, kernel[split:]),
        (_INITRD_SIZE, _INITRD, boot.initrd),
        (_COMMAND_LINE_SIZE, _COMMAND_LINE, boot.command_line),
    )
    for size, number, blob in blobs:
        items |= {size: struct.pack("<I", len(blob)), number: blob}
    memory_map = b"".join(struct.pack("<QQI", start, size, _E820_RAM) for start, size in ram)
    pci_memory = q35_pci_memory(memory)
    return BoardContents(items, {"etc/e820": memory_map, **acpi_files(vcpus, pci_memory)}, pci_memory)


def _setup_size(kernel: bytes) -> int:
    if len(kernel) <= _SETUP_SECTORS:
        return 0
    return ((kernel[_SETUP_SECTORS] or _DEFAULT_SECTORS) + 1) * _SECTOR
