# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that must lie in memory and registers when a vmlinux is entered at startup_64.

Linux Documentation/arch/x86/boot.rst ('64-bit Boot Protocol') and zero-page.rst; for SEV-SNP, the confidential
computing blob of arch/x86/include/asm/sev.h (struct cc_blob_sev_info) and struct cc_setup_data.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from veil.formats.acpi import tables_with_rsdp
from veil.formats.board import C_BIT_POSITION, MAX_VCPUS
from veil.formats.launch_digest import PageType
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.page_table_entries import ACCESSED, DIRTY, ENTRIES, LARGE, PRESENT, WRITABLE
from veil.formats.registers import (
    INIT_FCW,
    RESET_DR6,
    RESET_DR7,
    RESET_MXCSR,
    RESET_PAT,
    RESET_XCR0,
    X87_EMPTY,
    Cr0,
    Cr4,
    Efer,
    Rflags,
)
from veil.guest.elf import ElfKernel
from veil.guest.errors import GuestImageError
from veil.guest.linux import layout as at
from veil.guest.linux.cmdline import check_command_line
from veil.guest.linux.layout import AddressRange, Layout, plan_layout

_CC_BLOB_MAGIC = 0x45444D41
_SETUP_CC_BLOB = 7
_E820_RAM, _E820_RESERVED, _E820_ACPI = 1, 2, 3


@dataclass(frozen=True)
class Region:
    """`data`, whole pages, at guest-physical address `gpa`; zeros for a CPUID or secrets page, which others fill in."""

    gpa: int
    data: bytes = field(repr=False)
    kind: PageType
    name: str

    @property
    def range(self) -> AddressRange:
        """The addresses that it covers."""
        return AddressRange(self.gpa, self.gpa + len(self.data))


@dataclass(frozen=True)
class SegmentState:
    """A segment register as a VMSA holds it (`attributes` in the packed form of the APM's VMCB state save area)."""

    selector: int
    attributes: int
    limit: int
    base: int


@dataclass(frozen=True)
class BootRegisters:
    """The register state at startup_64; what is not named is zero."""

    rip: int
    rsi: int
    rsp: int
    cr3: int
    gdtr: SegmentState
    idtr: SegmentState = SegmentState(0, 0, 0, 0)
    cs: SegmentState = SegmentState(0x10, 0xA9B, 0xFFFFFFFF, 0)
    # ds, es, fs, gs and ss alike.
    data: SegmentState = SegmentState(0x18, 0xC93, 0xFFFFFFFF, 0)
    ldtr: SegmentState = SegmentState(0, 0x82, 0xFFFF, 0)
    tr: SegmentState = SegmentState(0, 0x8B, 0xFFFF, 0)
    cr0: int = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
    cr4: int = Cr4.PAE
    efer: int = Efer.SVME | Efer.LMA | Efer.LME
    rflags: int = Rflags.ONE
    dr6: int = RESET_DR6
    dr7: int = RESET_DR7
    g_pat: int = RESET_PAT
    xcr0: int = RESET_XCR0
    mxcsr: int = RESET_MXCSR
    fcw: int = INIT_FCW
    ftw: int = X87_EMPTY


@dataclass(frozen=True)
class LinuxBoot:
    """A guest ready to be launched: where things lie, what to load, and how to enter it."""

    layout: Layout
    regions: tuple[Region, ...]
    registers: BootRegisters
    command_line: str

    # Pages that the kernel finds by the CC blob. Without a monitor the first two are regions of this launch; with one,
    # the monitor fills them, and the third, before it enters the kernel.
    secrets: int = at.SECRETS
    cpuid: int = at.CPUID
    caa: int = at.CAA


def prepare_linux(
    kernel: ElfKernel,
    initrd: bytes,
    command_line: str,
    *,
    memory: int,
    vcpus: int = 1,
    monitor_size: int = 0,
    c_bit: int | None = C_BIT_POSITION,
) -> LinuxBoot:
    """The boot data of an SNP guest. `monitor_size` bytes at the top of low memory are kept from the kernel; 0 means
    that there is no monitor. `c_bit` None gives the same guest without memory encryption, for tests elsewhere."""
    if not 1 <= vcpus <= MAX_VCPUS:
        raise GuestImageError(f"a guest has 1 to {MAX_VCPUS} VCPUs, not {vcpus}")
    plan = plan_layout(memory, AddressRange(kernel.start, kernel.end), len(initrd), monitor_size)
    encrypted = c_bit is not None
    acpi = tables_with_rsdp(vcpus, at.ACPI_TABLES)
    if len(acpi) > at.ACPI_SIZE:
        raise ValueError(f"{vcpus} VCPUs do not fit into the ACPI tables")
    regions = [
        _region(at.GDT, _gdt(), "gdt"),
        _region(at.BOOT_PARAMS, _boot_params(kernel, plan, len(command_line.encode()), encrypted), "boot_params"),
        _region(at.COMMAND_LINE, check_command_line(command_line).encode() + b"\0", "command line"),
        _region(at.STACK, b"\0", "stack"),
        _region(at.PAGE_TABLES, _page_tables(c_bit, plan.top), "page tables"),
        _region(at.ACPI_TABLES, acpi, "acpi"),
        *(_region(piece.address, piece.data, "kernel") for piece in kernel.segments if piece.data),
        *([_region(plan.initrd.start, initrd, "initramfs")] if initrd else []),
    ]
    if encrypted:
        regions.append(_region(at.SETUP_DATA, _setup_data(), "cc blob"))
        if plan.monitor is None:
            regions.append(Region(at.SECRETS, bytes(PAGE_SIZE), PageType.SECRETS, "secrets"))
            regions.append(Region(at.CPUID, bytes(PAGE_SIZE), PageType.CPUID, "cpuid"))
    regions.sort(key=lambda region: region.gpa)
    _check_disjoint(regions, plan)
    registers = BootRegisters(
        rip=kernel.entry,
        rsi=at.BOOT_PARAMS,
        rsp=at.STACK + PAGE_SIZE,
        cr3=at.PAGE_TABLES,
        gdtr=SegmentState(0, 0, len(_gdt()) - 1, at.GDT),
    )
    return LinuxBoot(plan, tuple(regions), registers, command_line)


def e820_map(plan: Layout) -> list[tuple[AddressRange, int]]:
    """The memory map for the kernel: (addresses, e820 type)."""
    low, *high = plan.ram
    entries = [
        (AddressRange(0, at.LOW_END), _E820_RAM),
        (AddressRange(at.LOW_END, at.ONE_MIB), _E820_RESERVED),
        (AddressRange(at.ACPI_TABLES, at.ACPI_TABLES + at.ACPI_SIZE), _E820_ACPI),
        (AddressRange(at.SECRETS, at.FIRMWARE_END), _E820_RESERVED),
        (AddressRange(at.FIRMWARE_END, plan.monitor.start if plan.monitor else low.end), _E820_RAM),
    ]
    if plan.monitor:
        entries.append((plan.monitor, _E820_RESERVED))
        if plan.monitor.end < low.end:
            entries.append((AddressRange(plan.monitor.end, low.end), _E820_RAM))
    return entries + [(piece, _E820_RAM) for piece in high]


def _region(gpa: int, data: bytes, name: str) -> Region:
    return Region(gpa, data + bytes(-len(data) % PAGE_SIZE), PageType.NORMAL, name)


def _check_disjoint(regions: Sequence[Region], plan: Layout) -> None:
    for before, after in itertools.pairwise(regions):
        if before.range.overlaps(after.range):
            raise GuestImageError(f"{before.name} and {after.name} of the guest overlap at {after.gpa:#x}")
    for region in regions:
        if not any(piece.start <= region.gpa and region.range.end <= piece.end for piece in plan.guest_ram):
            raise GuestImageError(f"{region.name} at {region.range} lies outside the guest's memory")


def _gdt() -> bytes:
    """Selectors 0x10 (64-bit code) and 0x18 (data), the boot protocol's __BOOT_CS and __BOOT_DS."""
    return struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)


def _page_tables(c_bit: int | None, top: int) -> bytes:
    """An identity map of all memory, and at least of the first 4 GiB, by 2 MiB pages. All private: the C-bit stands in
    the leaves, and, as tables are read as private anyway, harmlessly in the entries that lead to them."""
    mask = 0 if c_bit is None else 1 << c_bit
    link = PRESENT | WRITABLE | ACCESSED | mask
    leaf = link | DIRTY | LARGE
    directories = max(4, -(-top // at.GIB))
    tables = [[at.PAGE_TABLES + PAGE_SIZE | link]]
    tables.append([at.PAGE_TABLES + (2 + number) * PAGE_SIZE | link for number in range(directories)])
    for number in range(directories):
        tables.append([(number * ENTRIES + entry) * PAGE_SIZE_2M | leaf for entry in range(ENTRIES)])
    return b"".join(struct.pack(f"<{len(table)}Q", *table).ljust(PAGE_SIZE, b"\0") for table in tables)


def _setup_data() -> bytes:
    """A SETUP_CC_BLOB entry and the blob itself behind it.

    The kernel proper takes boot_params.cc_blob_address, a decompressor would zero that field and looks here.
    """
    blob_address = at.SETUP_DATA + 32
    entry = struct.pack("<QIII", 0, _SETUP_CC_BLOB, 4, blob_address)
    blob = struct.pack("<IHHQIIQII", _CC_BLOB_MAGIC, 1, 0, at.SECRETS, PAGE_SIZE, 0, at.CPUID, PAGE_SIZE, 0)
    return entry.ljust(32, b"\0") + blob


def _boot_params(kernel: ElfKernel, plan: Layout, command_line: int, encrypted: bool) -> bytes:
    """The 'zero page'. Its setup header is ours: there is no bzImage to take it from."""
    page = bytearray(PAGE_SIZE)

    def put(offset: int, form: str, *values: int | bytes) -> None:
        struct.pack_into("<" + form, page, offset, *values)

    put(0x070, "Q", at.ACPI_TABLES)  # the RSDP is first
    if encrypted:
        put(0x13C, "I", at.SETUP_DATA + 32)
        put(0x250, "Q", at.SETUP_DATA)
    entries = e820_map(plan)
    put(0x1E8, "B", len(entries))
    for number, (piece, kind) in enumerate(entries):
        put(0x2D0 + 20 * number, "QQI", piece.start, piece.size, kind)
    put(0x1FA, "HHH", 0xFFFF, 0, 0xAA55)  # vid_mode normal, no root device, boot_flag
    put(0x202, "4sH", b"HdrS", 0x020F)
    put(0x210, "BB", 0xFF, 0x01)  # a loader without a number, LOADED_HIGH
    put(0x218, "II", plan.initrd.start if plan.initrd.size else 0, plan.initrd.size)
    put(0x228, "II", at.COMMAND_LINE, 0x7FFFFFFF)
    put(0x230, "IBBH", PAGE_SIZE_2M, 0, 21, 0x0001)  # kernel_alignment, not to be relocated, XLF_KERNEL_64
    put(0x238, "I", command_line)
    put(0x258, "QI", kernel.start, kernel.end - kernel.start)
    return bytes(page)
