# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables of the guest (ACPI specification 6.5, chapter 5): processors, the PCI bus, and how to switch off.

There is no I/O APIC: PCI devices interrupt by MSI-X, the serial port and the timer through the two 8259s. Debian's
kernel is built without CONFIG_X86_MPPARSE, so it drops its local APIC if told to do without ACPI (`acpi=off`,
`pci=noacpi`: arch/x86/kernel/acpi/boot.c, acpi_mps_check): that is why the PCI bus stands here too.
"""

import struct

from veil.formats.board import LOCAL_APIC, PCI_IO, PCI_MEMORY, PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT
from veil.guest.linux.layout import ACPI_SIZE, ACPI_TABLES

# SLP_TYP of the state S5 (soft off) in PM1_CONTROL bits 12:10, written together with SLP_EN.
SLEEP_TYPE_OFF = 0
SCI_IRQ = 9
# Writing RESET_VALUE resets the machine.
RESET_VALUE = 0x06

# Address space descriptors (6.4.3.5): types, and 'produced by the bridge, both ends fixed'.
_MEMORY, _IO, _BUS = 0, 1, 2
_FIXED = 0x0C

_OEM = b"VEIL  "
_TABLE_OEM = b"VEILSNP "
_FACP_SIZE = 276
_SYSTEM_IO = 1


def acpi_tables(vcpus: int, base: int = ACPI_TABLES) -> tuple[bytes, int]:
    """(the tables as one block to be loaded at `base`, the address of the RSDP in it)."""
    block = bytearray(64)  # the RSDP's place

    def add(table: bytes, alignment: int = 16) -> int:
        block.extend(bytes(-len(block) % alignment))
        address = base + len(block)
        block.extend(table)
        return address

    facs = add(_facs(), 64)
    dsdt = add(_table(b"DSDT", 2, _dsdt_aml()))
    tables = [add(_fadt(facs, dsdt)), add(_madt(vcpus))]
    xsdt = add(_table(b"XSDT", 1, b"".join(struct.pack("<Q", address) for address in tables)))
    block[:36] = _rsdp(xsdt)
    if len(block) > ACPI_SIZE:
        raise ValueError(f"{vcpus} VCPUs do not fit into the ACPI tables")
    return bytes(block), base


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with the standard header (5.2.6), its checksum included."""
    header = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OEM, _TABLE_OEM, 1, b"VEIL", 1)
    return _summed(header + body, 9)


def _summed(table: bytes, at: int) -> bytes:
    return table[:at] + bytes([-sum(table) & 0xFF]) + table[at + 1 :]


def _rsdp(xsdt: int) -> bytes:
    """5.2.5.3: two checksums, the first over the 20 bytes of ACPI 1.0."""
    first = _summed(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, 0), 8)
    return _summed(first + struct.pack("<IQB3x", 36, xsdt, 0), 32)


def _facs() -> bytes:
    """5.2.10: only the global lock in it matters; it has no checksum."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _dsdt_aml() -> bytes:
    """Name (_S5, Package () {0, 0, 0, 0}), the sleep type that switches off (7.4.2.6), and \\_SB.PCI0.

    The windows of the host bridge are where the kernel puts BARs: the MMIO hole below the APICs, and ports above the
    legacy ones.
    """
    windows = [
        struct.pack("<BHBBBHHHHH", 0x88, 13, _BUS, _FIXED, 0, 0, 0, 0, 0, 1),
        struct.pack("<BHBBBHHHHH", 0x88, 13, _IO, _FIXED, 3, 0, *_span(PCI_IO)),
        struct.pack("<BHBBBIIIII", 0x87, 23, _MEMORY, _FIXED, 1, 0, *_span(PCI_MEMORY)),
        b"\x79\x00",
    ]
    resources = b"".join(windows)
    buffer = _package(b"\x11", bytes([0x0A, len(resources)]) + resources)
    bridge = b"PCI0" + b"\x08_HID\x0c\x41\xd0\x0a\x03" + b"\x08_CRS" + buffer
    sleep = b"\x08_S5_" + _package(b"\x12", bytes([4, 0x0A, SLEEP_TYPE_OFF, 0x0A, SLEEP_TYPE_OFF, 0, 0]))
    return sleep + _package(b"\x10", b"\\_SB_" + _package(b"\x5b\x82", bridge))


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


def _fadt(facs: int, dsdt: int) -> bytes:
    """5.2.9. What is zero is not there: no SMI, no GPEs, no PM timer, no buttons."""
    body = bytearray(_FACP_SIZE - 36)

    def put(offset: int, form: str, *values: int | bytes) -> None:
        struct.pack_into("<" + form, body, offset - 36, *values)

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
    return _table(b"FACP", 6, bytes(body))


def _madt(vcpus: int) -> bytes:
    """5.2.12: a local APIC for each VCPU, numbered from 0. PCAT_COMPAT: there are 8259s; and none but they."""
    body = struct.pack("<II", LOCAL_APIC, 1)
    for number in range(vcpus):
        body += struct.pack("<BBBBI", 0, 8, number, number, 1)
    # LINT1 of every processor is the NMI.
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)
    return _table(b"APIC", 5, body)
