# SPDX-License-Identifier: GPL-2.0-or-later
"""The untrusted host's devices: `Platform` is the board with all of them.

They guard themselves against the guest: registers, queues and addresses hold whatever a hostile guest puts there.
"""

from __future__ import annotations

from veil.host.devices.apic.apic import LocalApic
from veil.host.devices.channel import ChannelConnection, ChannelDevice
from veil.host.devices.firmware.contents import BoardContents, BootItems, board_contents
from veil.host.devices.legacy.pic import Pic
from veil.host.devices.legacy.pit import Pit
from veil.host.devices.legacy.rtc import Rtc
from veil.host.devices.legacy.serial8250 import Serial8250
from veil.host.devices.pci.bus import PciBus
from veil.host.devices.pci.chipset import Chipset
from veil.host.devices.pci.function import PciFunction
from veil.host.devices.platform import AGENT_PORT, MAX_DISKS, Platform
from veil.host.devices.storage.backend import Backend, StorageError
from veil.host.devices.storage.image import SECTOR, RawImage
from veil.host.devices.storage.overlay import Blank, Overlay
from veil.host.devices.virtio.block import VirtioBlock
from veil.host.devices.virtio.console import ConsolePort, VirtioConsole
from veil.host.devices.virtio.net import Cable, VirtioNet
from veil.host.devices.virtio.virtqueue import DmaMemory, QueueError, Virtqueue

__all__ = [
    "AGENT_PORT",
    "MAX_DISKS",
    "SECTOR",
    "Backend",
    "Blank",
    "BoardContents",
    "BootItems",
    "Cable",
    "ChannelConnection",
    "ChannelDevice",
    "Chipset",
    "ConsolePort",
    "DmaMemory",
    "LocalApic",
    "Overlay",
    "PciBus",
    "PciFunction",
    "Pic",
    "Pit",
    "Platform",
    "QueueError",
    "RawImage",
    "Rtc",
    "Serial8250",
    "StorageError",
    "VirtioBlock",
    "VirtioConsole",
    "VirtioNet",
    "Virtqueue",
    "board_contents",
]
