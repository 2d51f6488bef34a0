# SPDX-License-Identifier: GPL-2.0-or-later
"""Where everything lies in guest-physical memory.

0x00001000  GDT, boot_params, command line, CC blob, page tables   used until the kernel has its own
0x0009f000  .. 1 MiB       reserved: nothing of ours, the kernel looks for firmware tables there
0x00100000  ACPI tables    (e820 type 3: in 'reserved' memory Linux would map them shared)
0x00108000  secrets page, CPUID page, calling area of the boot VCPU   (e820 'reserved')
0x01000000  the kernel, where it is linked to run (KASLR needs the decompressor, which does not run)
   ..       free
 top - m - i  initramfs
 top - m      the monitor's region, if there is a monitor
0xc0000000  .. 4 GiB       no memory: PCI BARs, the local APIC at 0xfee00000
0x100000000 memory beyond 3 GiB
"""

from dataclasses import dataclass

from veil.formats.board import HIGH_MEMORY, LOW_MEMORY_END
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.guest.errors import GuestImageError

MIB = 1 << 20
GIB = 1 << 30

GDT = 0x1000
BOOT_PARAMS = 0x2000
COMMAND_LINE = 0x3000
SETUP_DATA = 0x4000  # with the CC blob behind it
STACK = 0x5000
PAGE_TABLES = 0x6000  # PML4, PDPT, four page directories
LOW_END = 0x9F000
ONE_MIB = 0x100000
ACPI_TABLES = 0x100000
ACPI_SIZE = 0x8000
SECRETS = 0x108000
CPUID = 0x109000
CAA = 0x10A000
FIRMWARE_END = 0x110000

MAX_MEMORY = 64 * GIB
# What a 6.12 kernel needs free beside itself to come up and run a few commands.
_WORKING_SET = 40 * MIB


@dataclass(frozen=True)
class AddressRange:
    """Guest-physical addresses from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start

    def overlaps(self, other: "AddressRange") -> bool:
        """Whether an address lies in both."""
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}"


@dataclass(frozen=True)
class Layout:
    """The places that depend on what is booted; the others are this module's constants."""

    memory: int
    kernel: AddressRange
    initrd: AddressRange
    monitor: AddressRange | None

    @property
    def ram(self) -> tuple[AddressRange, ...]:
        """All memory of the machine, with the MMIO hole left out."""
        if self.memory <= LOW_MEMORY_END:
            return (AddressRange(0, self.memory),)
        return (AddressRange(0, LOW_MEMORY_END), AddressRange(HIGH_MEMORY, HIGH_MEMORY + self.memory - LOW_MEMORY_END))

    @property
    def guest_ram(self) -> tuple[AddressRange, ...]:
        """The memory without the monitor's region: what the kernel must find validated and open to its VMPL."""
        if self.monitor is None:
            return self.ram
        low, *high = self.ram
        pieces = (AddressRange(low.start, self.monitor.start), AddressRange(self.monitor.end, low.end))
        return (*(piece for piece in pieces if piece.size), *high)

    @property
    def top(self) -> int:
        """The end of the guest-physical address space, holes included."""
        return self.ram[-1].end


def address_space(memory: int) -> int:
    """The end of the guest-physical addresses of a machine with `memory` bytes (RMP and memory maps are that long)."""
    return memory if memory <= LOW_MEMORY_END else memory + HIGH_MEMORY - LOW_MEMORY_END


def plan_layout(memory: int, kernel: AddressRange, initrd_size: int, monitor_size: int = 0) -> Layout:
    """Lay out a guest of `memory` bytes; `monitor_size` 0 means that there is no monitor."""
    if memory % PAGE_SIZE_2M or memory <= 0:
        raise GuestImageError(f"the memory size must be a multiple of 2 MiB, not {memory} bytes")
    if memory > MAX_MEMORY:
        raise GuestImageError(f"too much memory: {_mib(memory)}, at most {_mib(MAX_MEMORY)} are supported")
    monitor_size = _up(monitor_size, PAGE_SIZE_2M)
    needed = _up(kernel.end + _up(initrd_size, PAGE_SIZE) + monitor_size + _WORKING_SET, PAGE_SIZE_2M)
    if memory < needed:
        with_monitor = f", a monitor of {_mib(monitor_size)}" if monitor_size else ""
        raise GuestImageError(
            f"too little memory: {_mib(memory)}; this kernel, an initramfs of {_mib(initrd_size)}{with_monitor}"
            f" need at least {_mib(needed)}"
        )
    if kernel.start < FIRMWARE_END:
        raise GuestImageError(f"the kernel wants to lie at {kernel.start:#x}, where the boot data is")
    top = min(memory, LOW_MEMORY_END) - monitor_size
    initrd_start = (top - initrd_size) & -PAGE_SIZE
    return Layout(
        memory,
        kernel,
        AddressRange(initrd_start, initrd_start + initrd_size),
        AddressRange(top, top + monitor_size) if monitor_size else None,
    )


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _mib(size: int) -> str:
    return f"{-(-size // MIB)} MiB"
