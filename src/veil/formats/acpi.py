# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables of the guest (ACPI specification 6.5, chapter 5): processors, the PCI bus, and how to switch off.

A board that is booted directly has no I/O APIC: PCI devices interrupt by MSI-X, the serial port and the timer through
the two 8259s. One with Q35's chipset has one, wired as QEMU's (hw/i386/acpi-common.c).

Debian's kernel is built without CONFIG_X86_MPPARSE, so it drops its local APIC if told to do without ACPI (`acpi=off`,
`pci=noacpi`: arch/x86/kernel/acpi/boot.c, acpi_mps_check): that is why the PCI bus stands here too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from veil.formats.board import (
    CONSOLE_IRQ,
    CONSOLE_SLOT,
    DISK_IRQ,
    DISK_SLOT,
    IO_APIC,
    LOCAL_APIC,
    MAX_DISKS,
    NETWORK_SLOT,
    PCI_ADDRESS_PORT,
    PCI_DATA_PORT,
    PCI_IO,
    PCI_MEMORY,
    PM1_CONTROL_PORT,
    PM1_EVENT_PORT,
    PM_TIMER_PORT,
    RESET_PORT,
    TIMER_IRQ,
    TIMER_PIN,
)

__all__ = [
    "RSDP_CHECKSUMS",
    "RSDP_POINTERS",
    "RSDP_SIZE",
    "SLEEP_TYPE_OFF",
    "AcpiTables",
    "Checksum",
    "Pointer",
    "acpi_tables",
    "madt",
    "rsdp",
    "tables_with_rsdp",
]

# SLP_TYP of the state S5 (soft off) in PM1_CONTROL bits 12:10, written together with SLP_EN.
SLEEP_TYPE_OFF = 0
SCI_IRQ = 9
# Writing RESET_VALUE resets the machine.
RESET_VALUE = 0x06

# Address space descriptors (6.4.3.5): types, and 'produced by the bridge, both ends fixed'.
_MEMORY, _IO, _BUS = 0, 1, 2
_FIXED = 0x0C
#: Of configuration mechanism 1: (first, last + 1).
_PCI_PORTS = (PCI_ADDRESS_PORT, PCI_DATA_PORT + 4)

# MPS INTI flags (table 5.26).
_ACTIVE_HIGH, _LEVEL = 1, 3 << 2

_OEM = b"VEIL  "
_TABLE_OEM = b"VEILSNP "
_SYSTEM_IO = 1


@dataclass(frozen=True)
class Pointer:
    """A place in the tables that holds an address: `size` bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Checksum:
    """A byte at `offset` that makes the sum of `length` bytes from `start` zero."""

    offset: int
    start: int
    length: int


@dataclass(frozen=True)
class AcpiTables:
    """The tables but the RSDP, as they are before somebody decides where they lie.

    In `block`, addresses are offsets into it, and checksums are zero.
    """

    block: bytes
    pointers: tuple[Pointer, ...]
    checksums: tuple[Checksum, ...]
    xsdt: int
    """Where in the block the XSDT is."""
    rsdt: int | None = None
    """and the RSDT, the same with addresses of 32 bits, if there is one"""

    def placed(self, base: int) -> bytes:
        """As they must be at `base`, a multiple of 64."""
        block = bytearray(self.block)
        for pointer in self.pointers:
            place = slice(pointer.offset, pointer.offset + pointer.size)
            block[place] = (int.from_bytes(block[place], "little") + base).to_bytes(pointer.size, "little")
        for checksum in self.checksums:
            block[checksum.offset] = -sum(block[checksum.start : checksum.start + checksum.length]) & 0xFF
        return bytes(block)


_HEADER_SIZE, _CHECKSUM = 36, 9
_FACP_SIZE = 276
#: FIRMWARE_CTRL, DSDT, X_DSDT
_FADT_POINTERS = (Pointer(36, 4), Pointer(40, 4), Pointer(140, 8))
RSDP_SIZE = 36
RSDP_POINTERS = (Pointer(16, 4), Pointer(24, 8))
RSDP_CHECKSUMS = (Checksum(8, 0, 20), Checksum(32, 0, RSDP_SIZE))
#: so that what follows is aligned
_RSDP_ROOM = 64


class _Block:
    """Tables in a row."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pointers: list[Pointer] = []
        self.checksums: list[Checksum] = []

    def add(self, table: bytes, *pointers: Pointer, alignment: int = 16, summed: bool = True) -> int:
        """Its offset. `pointers` are places in the table, `summed`: its header has a checksum."""
        self.data.extend(bytes(-len(self.data) % alignment))
        at = len(self.data)
        self.data.extend(table)
        self.pointers += [Pointer(at + pointer.offset, pointer.size) for pointer in pointers]
        if summed:
            self.checksums.append(Checksum(at + _CHECKSUM, at, len(table)))
        return at


def acpi_tables(vcpus: int, *, q35: bool = False, pci_memory: tuple[int, int] = PCI_MEMORY) -> AcpiTables:
    """Of a board with so many VCPUs. `q35`: with Q35's chipset, which has an I/O APIC and a PM timer.

    `pci_memory`: what the PCI host bridge decodes, (first, last + 1).
    """
    block = _Block()
    facs = block.add(_facs(), alignment=64, summed=False)
    dsdt = block.add(_table(b"DSDT", 2, _dsdt_aml(q35, pci_memory)))
    fadt = block.add(_fadt(facs, dsdt, q35), *_FADT_POINTERS)
    tables = (fadt, block.add(_madt(vcpus, q35)))
    entries = [Pointer(_HEADER_SIZE + 8 * index, 8) for index in range(len(tables))]
    xsdt = block.add(_table(b"XSDT", 1, b"".join(struct.pack("<Q", at) for at in tables)), *entries)
    # For those that look for tables in QEMU's files by the address of 32 bits alone, which is what those have.
    short = [Pointer(_HEADER_SIZE + 4 * index, 4) for index in range(len(tables))]
    rsdt = block.add(_table(b"RSDT", 1, b"".join(struct.pack("<I", at) for at in tables)), *short) if q35 else None
    return AcpiTables(bytes(block.data), tuple(block.pointers), tuple(block.checksums), xsdt, rsdt)


def tables_with_rsdp(vcpus: int, base: int) -> bytes:
    """The RSDP, and all other tables, as one block to be loaded at `base`."""
    tables = acpi_tables(vcpus)
    return rsdp(base + _RSDP_ROOM + tables.xsdt).ljust(_RSDP_ROOM, b"\0") + tables.placed(base + _RSDP_ROOM)


def madt(vcpus: int, *, q35: bool = False) -> bytes:
    """The table of processors and interrupt controllers alone, with its checksum; `q35` as in `acpi_tables`."""
    return _summed(_madt(vcpus, q35), _CHECKSUM)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with the standard header (5.2.6), but for its checksum."""
    size = _HEADER_SIZE + len(body)
    return struct.pack("<4sIBB6s8sI4sI", signature, size, revision, 0, _OEM, _TABLE_OEM, 1, b"VEIL", 1) + body


def _summed(table: bytes, at: int) -> bytes:
    return table[:at] + bytes([-sum(table) & 0xFF]) + table[at + 1 :]


def rsdp(xsdt: int, rsdt: int = 0) -> bytes:
    """5.2.5.3: two checksums, the first over the 20 bytes of ACPI 1.0. `rsdt`: 0 if there is none."""
    first = _summed(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, rsdt), RSDP_CHECKSUMS[0].offset)
    return _summed(first + struct.pack("<IQB3x", RSDP_SIZE, xsdt, 0), RSDP_CHECKSUMS[1].offset)


def _facs() -> bytes:
    """5.2.10: only the global lock in it matters; it has no checksum."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _dsdt_aml(q35: bool, pci_memory: tuple[int, int]) -> bytes:
    """Name (_S5, Package () {0, 0, 0, 0}), the sleep type that switches off (7.4.2.6), and \\_SB.PCI0.

    The windows of the host bridge are where the kernel puts BARs: the MMIO hole below the APICs, and ports above the
    legacy ones. Q35 has its LPC bridge's ports below them, too, and the kernel claims those of its power management
    by this bridge: all ports are in its windows but the bridge's own. With an I/O APIC the kernel looks for the
    devices' INTA in _PRT (6.2.13).
    """
    ports = ((0, _PCI_PORTS[0]), (_PCI_PORTS[1], PCI_IO[1])) if q35 else (PCI_IO,)
    windows = [
        struct.pack("<BHBBBHHHHH", 0x88, 13, _BUS, _FIXED, 0, 0, 0, 0, 0, 1),
        *(struct.pack("<BHBBBHHHHH", 0x88, 13, _IO, _FIXED, 3, 0, *_span(window)) for window in ports),
        struct.pack("<BHBBBIIIII", 0x87, 23, _MEMORY, _FIXED, 1, 0, *_span(pci_memory)),
        b"\x79\x00",
    ]
    resources = b"".join(windows)
    buffer = _package(b"\x11", bytes([0x0A, len(resources)]) + resources)
    bridge = b"PCI0" + b"\x08_HID\x0c\x41\xd0\x0a\x03" + b"\x08_CRS" + buffer + (_interrupt_routing() if q35 else b"")
    sleep = b"\x08_S5_" + _package(b"\x12", bytes([4, 0x0A, SLEEP_TYPE_OFF, 0x0A, SLEEP_TYPE_OFF, 0, 0]))
    return sleep + _package(b"\x10", b"\\_SB_" + _package(b"\x5b\x82", bridge))


def _interrupt_routing() -> bytes:
    """Name (_PRT, ...): for each slot {address, pin 0 (INTA), no link device, global interrupt}."""
    wires = {CONSOLE_SLOT: CONSOLE_IRQ} | dict.fromkeys(
        [*range(DISK_SLOT, DISK_SLOT + MAX_DISKS), NETWORK_SLOT], DISK_IRQ
    )
    routes = [
        _package(b"\x12", b"\x04" + struct.pack("<BI", 0x0C, slot << 16 | 0xFFFF) + bytes([0, 0, 0x0A, irq]))
        for slot, irq in wires.items()
    ]
    return b"\x08_PRT" + _package(b"\x12", bytes([len(routes)]) + b"".join(routes))


def _span(window: tuple[int, int]) -> tuple[int, int, int, int]:
    """Minimum, maximum, translation and length of an address space descriptor (6.4.3.5)."""
    start, end = window
    return start, end - 1, 0, end - start


def _package(opcode: bytes, body: bytes) -> bytes:
    """An AML object with its PkgLength (20.2.4), which counts its own bytes."""
    if len(body) + 1 < 0x40:
        return opcode + bytes([len(body) + 1]) + body
    length = len(body) + 2
    if length >= 1 << 12:
        raise ValueError("an AML object longer than this encoding of its length")
    return opcode + bytes([0x40 | length & 0xF, length >> 4]) + body


def _port(port: int, size: int) -> bytes:
    """A generic address (5.2.3.2) of an I/O port of `size` bytes."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8 * size, 0, min(size, 3), port)


def _fadt(facs: int, dsdt: int, q35: bool) -> bytes:
    """5.2.9. What is zero is not there: no SMI, no GPEs, no buttons."""
    body = bytearray(_FACP_SIZE - _HEADER_SIZE)

    def put(offset: int, form: str, *values: int | bytes) -> None:
        struct.pack_into("<" + form, body, offset - _HEADER_SIZE, *values)

    put(36, "II", facs, dsdt)
    put(46, "H", SCI_IRQ)
    put(56, "I", PM1_EVENT_PORT)
    put(64, "I", PM1_CONTROL_PORT)
    put(88, "BB", 4, 2)
    put(96, "HH", 0xFFF, 0xFFF)  # no C2, no C3
    # IAPC_BOOT_ARCH: legacy devices (the 8250), no VGA, and, by a bit left clear, no keyboard controller: probing for
    # one that is not there takes half a second of timeouts.
    put(109, "H", 1 << 0 | 1 << 2)
    # WBINVD works; C1 works; no fixed power and sleep buttons; no RTC wake-up; the reset register below.
    put(112, "I", 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10)
    put(116, "12sB", _port(RESET_PORT, 1), RESET_VALUE)
    put(131, "B", 5)
    put(140, "Q", dsdt)
    put(148, "12s", _port(PM1_EVENT_PORT, 4))
    put(172, "12s", _port(PM1_CONTROL_PORT, 2))
    if q35:
        put(76, "I", PM_TIMER_PORT)
        put(91, "B", 4)
        put(208, "12s", _port(PM_TIMER_PORT, 4))
    return _table(b"FACP", 6, bytes(body))


def _madt(vcpus: int, q35: bool) -> bytes:
    """5.2.12: a local APIC for each VCPU, numbered from 0. PCAT_COMPAT: there are 8259s.

    With an I/O APIC its pins are the global interrupts from 0. Overrides say which pin has the timer, and which IRQs
    are not edge-triggered: SCI, and those that PCI devices may have.
    """
    body = struct.pack("<II", LOCAL_APIC, 1)
    for number in range(vcpus):
        body += struct.pack("<BBBBI", 0, 8, number, number, 1)
    if q35:
        body += struct.pack("<BBBBII", 1, 12, 0, 0, IO_APIC, 0)
        body += struct.pack("<BBBBIH", 2, 10, 0, TIMER_IRQ, TIMER_PIN, 0)
        for irq in (5, SCI_IRQ, CONSOLE_IRQ, DISK_IRQ):
            body += struct.pack("<BBBBIH", 2, 10, 0, irq, irq, _ACTIVE_HIGH | _LEVEL)
    # LINT1 of every processor is the NMI.
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)
    return _table(b"APIC", 5, body)
