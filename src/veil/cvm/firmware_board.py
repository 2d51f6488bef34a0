# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host's board tells firmware, from a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.cvm.configuration import Configuration
from veil.formats.board import HIGH_MEMORY
from veil.host.devices import BoardContents, BootItems, board_contents
from veil.snp import Machine

if TYPE_CHECKING:
    from veil.image.firmware_image import BootFiles

__all__ = ["boot_items", "firmware_board"]


def boot_items(files: BootFiles | None) -> BootItems | None:
    """The files for the firmware, as the host offers them."""
    return None if files is None else BootItems(files.kernel, files.initrd, files.command_line_bytes)


def firmware_board(configuration: Configuration, machine: Machine, boot: BootItems | None) -> BoardContents:
    """What there is: all memory but the firmware's own, and what VeilMon and the services keep."""
    # What makes an image takes long to import, and a resumed guest without firmware needs nothing of it.
    from veil.image.firmware_image import monitor_base

    own = HIGH_MEMORY - machine.firmware_size
    # Nor does QEMU name what an IGVM file has by itself.
    pieces = [piece for piece in machine.ram_ranges if piece != machine.far_memory]
    (start, length), *others = [piece for piece in pieces if piece[0] != own] if machine.firmware_size else pieces
    if configuration.monitor:
        length = monitor_base(length, configuration.services)
    ram = [(start, length), *others]
    return board_contents(configuration.memory, ram, configuration.vcpus, boot)
