# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware that follows the script gets the tables that a directly booted guest finds in its memory."""

from __future__ import annotations

import struct

import pytest

from veil.formats.acpi import acpi_tables, madt, rsdp
from veil.formats.board import PCI_MEMORY
from veil.host.devices.firmware.contents import board_contents
from veil.host.devices.firmware.table_loader import acpi_files

_TABLES, _RSDP = 0x7F0000, 0xF0000


def _name(field: bytes) -> str:
    return field.split(b"\0")[0].decode()


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_tables_are_as_placed(vcpus: int) -> None:
    files = {name: bytearray(content) for name, content in acpi_files(vcpus, PCI_MEMORY).items()}
    script = files.pop("etc/table-loader")
    assert len(script) % 128 == 0
    places: dict[str, int] = {}
    for at in range(0, len(script), 128):
        command = bytes(script[at : at + 128])
        (code,) = struct.unpack_from("<I", command)
        if code == 1:
            name, alignment, zone = struct.unpack_from("<56sIB", command, 4)
            places[_name(name)] = {1: _TABLES, 2: _RSDP}[zone]
            assert places[_name(name)] % alignment == 0
        elif code == 2:
            place, target, offset, size = struct.unpack_from("<56s56sIB", command, 4)
            field = slice(offset, offset + size)
            value = int.from_bytes(files[_name(place)][field], "little") + places[_name(target)]
            files[_name(place)][field] = value.to_bytes(size, "little")
        else:
            place, offset, start, length = struct.unpack_from("<56sIII", command, 4)
            assert code == 3
            assert files[_name(place)][offset] == 0
            files[_name(place)][offset] = -sum(files[_name(place)][start : start + length]) & 0xFF
    tables = acpi_tables(vcpus, q35=True)
    assert bytes(files["etc/acpi/tables"]) == tables.placed(_TABLES)
    assert tables.rsdt
    assert bytes(files["etc/acpi/rsdp"]) == rsdp(_TABLES + tables.xsdt, _TABLES + tables.rsdt)
    assert _entries(files, 16, 4) == _entries(files, 24, 8) == [b"FACP", b"APIC"]


def _entries(files: dict[str, bytearray], at: int, size: int) -> list[bytes]:
    """What the RSDP leads to by its address there, in a table of addresses of so many bytes."""
    block, root = files["etc/acpi/tables"], files["etc/acpi/rsdp"]
    start = int.from_bytes(root[at : at + size], "little") - _TABLES
    (length,) = struct.unpack_from("<I", block, start + 4)
    places = [int.from_bytes(block[at : at + size], "little") for at in range(start + 36, start + length, size)]
    return [bytes(block[place - _TABLES : place - _TABLES + 4]) for place in places]


def test_the_timer_is_in_the_fadt() -> None:
    block = acpi_tables(1, q35=True).placed(0)
    fadt = block[block.index(b"FACP") :]
    assert struct.unpack_from("<I", fadt, 76) == (0x608,)
    assert fadt[91] == 4
    assert struct.unpack_from("<BBBBQ", fadt, 208) == (1, 32, 0, 3, 0x608)


def test_the_interrupt_controllers_are_in_the_madt() -> None:
    """As QEMU's q35 has them: pins 0 to 23 of one I/O APIC; the timer at 2; SCI and PCI's interrupts by level."""
    table = madt(2, q35=True)
    assert sum(table) % 256 == 0
    found, at = [], 44
    while at < len(table):
        found.append((table[at], table[at + 2 : at + table[at + 1]]))
        at += table[at + 1]
    assert [kind for kind, _ in found] == [0, 0, 1, 2, 2, 2, 2, 2, 4]
    assert struct.unpack("<BxII", found[2][1]) == (0, 0xFEC00000, 0)
    overrides = [struct.unpack("<BBIH", body) for kind, body in found if kind == 2]
    assert overrides == [(0, 0, 2, 0), *((0, irq, irq, 0xD) for irq in (5, 9, 10, 11))]


def test_the_devices_interrupts_are_in_the_dsdt() -> None:
    block = acpi_tables(1, q35=True).placed(0)
    start = block.index(b"_PRT") + 4
    assert block[start] == 0x12
    # The console's, eight disks', the network card's.
    routes = block[start + 4 : start + 4 + 10 * 12]
    assert block[start + 3] == 10
    for slot in range(1, 11):
        route = routes[12 * (slot - 1) : 12 * slot]
        assert route[:3] == b"\x12\x0b\x04"
        assert struct.unpack("<xIBBxB", route[3:]) == (slot << 16 | 0xFFFF, 0, 0, 10 if slot == 1 else 11)
    assert b"_PRT" not in acpi_tables(1).block


def test_the_bridge_has_the_ports_of_the_lpc_bridge() -> None:
    block = acpi_tables(1, q35=True).placed(0)
    at, windows = block.index(b"\x88\x0d\x00\x01"), []
    for _ in range(2):
        kind, size, _, _, _, _, first, last, _, length = struct.unpack_from("<BHBBBHHHHH", block, at)
        assert (kind, size, length) == (0x88, 13, last - first + 1)
        windows.append((first, last))
        at += 16
    assert windows == [(0, 0xCF7), (0xD00, 0xFFFF)]


@pytest.mark.parametrize(
    ("memory", "first"), [(512 << 20, 2 << 30), (2 << 30, 2 << 30), (5 << 29, 5 << 29), (8 << 30, 3 << 30)]
)
def test_the_bridge_has_the_memory_where_firmware_places_devices(memory: int, first: int) -> None:
    contents = board_contents(memory, [(0, memory)], 1, None)
    block = contents.files["etc/acpi/tables"]
    at = block.index(b"\x87\x17\x00\x00")
    assert struct.unpack_from("<IIIII", block, at + 6) == (0, first, 0xFDFFFFFF, 0, 0xFE000000 - first)
    assert contents.pci_memory == (first, 0xFE000000)
