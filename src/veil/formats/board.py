# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the machine has what: the ACPI tables and the memory map say it, the devices and the machine are it."""

from __future__ import annotations

__all__ = [
    "CONSOLE_IRQ",
    "CONSOLE_SLOT",
    "C_BIT",
    "C_BIT_POSITION",
    "DISK_IRQ",
    "DISK_SLOT",
    "HIGH_MEMORY",
    "IO_APIC",
    "LOCAL_APIC",
    "LOW_MEMORY_END",
    "MAX_DISKS",
    "MAX_VCPUS",
    "NETWORK_SLOT",
    "PCI_ADDRESS_PORT",
    "PCI_DATA_PORT",
    "PCI_IO",
    "PCI_MEMORY",
    "PM1_CONTROL_PORT",
    "PM1_EVENT_PORT",
    "PM_TIMER_PORT",
    "RESET_PORT",
    "SLEEP_ENABLE",
    "TIMER_IRQ",
    "TIMER_PIN",
    "q35_pci_memory",
]

#: Of a page table entry, as of an address: the page is private (CPUID 8000_001F EBX).
C_BIT_POSITION = 51
C_BIT = 1 << C_BIT_POSITION

#: As many as the tables and VeilMon's memory have room for.
MAX_VCPUS = 64

# RAM ends here and goes on there; between them are devices.
LOW_MEMORY_END = 0xC0000000
HIGH_MEMORY = 1 << 32
LOCAL_APIC = 0xFEE00000
#: of boards with Q35's chipset
IO_APIC = 0xFEC00000
#: The 8254's IRQ, and where it is at the I/O APIC; the other ISA IRQs have the pin of their number.
TIMER_IRQ, TIMER_PIN = 0, 2
#: Configuration mechanism 1 (PCI local bus specification 3.0, 3.2.2.3.2): 4 bytes each.
PCI_ADDRESS_PORT, PCI_DATA_PORT = 0xCF8, 0xCFC
#: What the PCI host bridge decodes: (first, last + 1).
PCI_IO = (0x1000, 0x10000)
PCI_MEMORY = (LOW_MEMORY_END, 0xFE000000)
#: PCI devices: their slots, and where INTA of each goes.
CONSOLE_SLOT, CONSOLE_IRQ = 1, 10
#: The first disk's; all share the IRQ.
DISK_SLOT, DISK_IRQ = 2, 11
#: As many as have a place on the board.
MAX_DISKS = 8
#: Behind the last disk, whose IRQ it shares.
NETWORK_SLOT = DISK_SLOT + MAX_DISKS

# Power management (ACPI specification 6.5, 4.8.3): status and enable (4 bytes), control (2 bytes), timer, and reset.
PM1_EVENT_PORT = 0x600
PM1_CONTROL_PORT = 0x604
#: of boards with firmware, which counts time by it
PM_TIMER_PORT = 0x608
#: SLP_EN of PM1_CONTROL.
SLEEP_ENABLE = 1 << 13
RESET_PORT = 0xCF9

#: Where firmware begins to place devices, if RAM ends there or below (edk2, PlatformQemuUc32BaseInitialization).
_Q35_PCI_MEMORY = 2 << 30


def q35_pci_memory(memory: int) -> tuple[int, int]:
    """As `PCI_MEMORY`, of a board with Q35's chipset and so many bytes of RAM: firmware places the devices there."""
    return max(min(memory, LOW_MEMORY_END), _Q35_PCI_MEMORY), PCI_MEMORY[1]
