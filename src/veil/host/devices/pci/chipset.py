# SPDX-License-Identifier: GPL-2.0-or-later
"""The chipset's own functions: what a kernel that is booted directly needs, or as much of Intel's Q35 as firmware asks.

Q35's registers are those of Intel's data sheets 316966 (3 Series Express Chipset, chapter 5) and 316972 (ICH9,
chapter 13). Only those are there that OVMF and Linux use for this board; of most of them only what was written is
kept. The memory-mapped ones behind RCBA are not there.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

from veil.host.devices.bus import Window
from veil.host.devices.pci.function import CONFIG_SIZE, QEMU_SUBSYSTEM, PciFunction

if TYPE_CHECKING:
    from veil.host.devices.bus import IoBus, MmioBus
    from veil.host.devices.pci.bus import PciBus

__all__ = ["Chipset", "plug_chipset"]

_HOST_BRIDGE_SLOT, _LPC_SLOT = 0, 0x1F
_HOST_BRIDGE, _ISA_BRIDGE = 0x060000, 0x060100
_INTEL = 0x8086

# PCIEXBAR: where ECAM is (316966, 5.1.15), 64 bits.
_PCIEXBAR = 0x60
_PCIEXBAR_ENABLE = 1
_PCIEXBAR_LENGTHS = {0: 256 << 20, 1: 128 << 20, 2: 64 << 20}
_PCIEXBAR_WRITABLE = 0x0000000F_FC000007
#: Configuration space of a function in ECAM (PCI Express base specification, 7.2.2).
_ECAM_FUNCTION = 4096


class Chipset(enum.Enum):
    """What sits at 00:00.0, and what comes with it."""

    #: QEMU's generic host bridge: Linux has no quirks for it
    GENERIC = "generic"
    #: Q35's host bridge with ECAM, and ICH9's LPC bridge at 00:1f.0
    Q35 = "q35"


def plug_chipset(bus: PciBus, chipset: Chipset) -> None:
    """Plug a chipset's functions into a bus that has nothing yet."""
    if chipset is Chipset.GENERIC:
        bridge = PciFunction(vendor=0x1B36, device=0x0008, class_code=_HOST_BRIDGE, subsystem=QEMU_SUBSYSTEM)
        bus.add(_HOST_BRIDGE_SLOT, bridge)
    else:
        bus.add(_HOST_BRIDGE_SLOT, _Q35HostBridge(bus))
        bus.add(_LPC_SLOT, _Ich9Lpc())


class _Q35HostBridge(PciFunction):
    """82Q35's DRAM controller, 8086:29c0. ECAM is where PCIEXBAR says, once its enable bit is set."""

    #: PAM0 to PAM6 and SMRAM: firmware opens its shadow there, which is RAM already.
    _KEPT = ((0x90, 7), (0x9D, 2))

    def __init__(self, bus: PciBus) -> None:
        super().__init__(vendor=_INTEL, device=0x29C0, class_code=_HOST_BRIDGE, subsystem=QEMU_SUBSYSTEM)
        self._bus = bus
        self._ecam = Window(0, 0, self._ecam_read, self._ecam_write)
        struct.pack_into("<Q", self.writable, _PCIEXBAR, _PCIEXBAR_WRITABLE)
        for offset, size in self._KEPT:
            self.writable[offset : offset + size] = b"\xff" * size

    def connect(self, io: IoBus, mmio: MmioBus, memory: tuple[int, int]) -> None:
        super().connect(io, mmio, memory)
        self._place_ecam()

    def config_written(self, offset: int, size: int) -> None:
        if _PCIEXBAR <= offset < _PCIEXBAR + 8:
            self._place_ecam()

    def load_config(self, config: bytes) -> None:
        super().load_config(config)
        self._place_ecam()

    def _place_ecam(self) -> None:
        assert self._mmio is not None
        self._mmio.remove_window(self._ecam)
        (value,) = struct.unpack_from("<Q", self.config, _PCIEXBAR)
        length = _PCIEXBAR_LENGTHS.get(value >> 1 & 3)
        if not value & _PCIEXBAR_ENABLE or length is None:
            return
        start = value & ~7 & -length
        # Over memory, flash and the local APIC it must not go.
        if self._bus.memory[0] <= start and start + length <= self._bus.memory[1]:
            self._ecam.start, self._ecam.length = start, length
            # First, so that no BAR can hide it.
            self._mmio.add_window(self._ecam, first=True)

    def _ecam_target(self, offset: int, size: int) -> tuple[PciFunction, int] | None:
        function = self._bus.function(offset >> 20, offset >> 15 & 0x1F, offset >> 12 & 7)
        register = offset & _ECAM_FUNCTION - 1
        # The specification lets a bridge refuse what crosses a doubleword.
        if function is None or (register & 3) + size > 4:
            return None
        return function, register

    def _ecam_read(self, offset: int, size: int) -> int:
        target = self._ecam_target(offset, size)
        if target is None:
            return (1 << 8 * size) - 1
        function, register = target
        # There are no extended capabilities: the first header is zero.
        return function.config_read(register, size) if register < CONFIG_SIZE else 0

    def _ecam_write(self, offset: int, size: int, value: int) -> None:
        target = self._ecam_target(offset, size)
        if target is not None and target[1] < CONFIG_SIZE:
            target[0].config_write(target[1], size, value)


class _Ich9Lpc(PciFunction):
    """ICH9's LPC bridge, 8086:2918. The power management ports stay at 0x600, whatever PMBASE says."""

    #: PMBASE, ACPI_CNTL, PIRQ A to D, PIRQ E to H, GEN_PMCON_1, RCBA
    _KEPT = ((0x40, 0xFF80), (0x44, 0x87), (0x60, 0x8F8F8F8F), (0x68, 0x8F8F8F8F), (0xA0, 0xFFFF), (0xF0, 0xFFFFC001))
    _PMBASE, _PMBASE_IS_IO = 0x40, 1
    _PIRQS, _PIRQ_OFF = (*range(0x60, 0x64), *range(0x68, 0x6C)), 0x80

    def __init__(self) -> None:
        super().__init__(vendor=_INTEL, device=0x2918, class_code=_ISA_BRIDGE, revision=2, subsystem=QEMU_SUBSYSTEM)
        for offset, mask in self._KEPT:
            struct.pack_into("<I", self.writable, offset, mask)
        struct.pack_into("<I", self.config, self._PMBASE, self._PMBASE_IS_IO)
        for offset in self._PIRQS:
            self.config[offset] = self._PIRQ_OFF
