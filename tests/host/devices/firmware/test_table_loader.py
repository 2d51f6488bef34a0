# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware that follows the script gets the tables that a directly booted guest finds in its memory."""

from __future__ import annotations

import struct

import pytest

from veil.formats.acpi import acpi_tables, rsdp
from veil.host.devices.firmware.table_loader import acpi_files

_TABLES, _RSDP = 0x7F0000, 0xF0000


def _name(field: bytes) -> str:
    return field.split(b"\0")[0].decode()


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_tables_are_as_placed(vcpus: int) -> None:
    files = {name: bytearray(content) for name, content in acpi_files(vcpus).items()}
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
    tables = acpi_tables(vcpus, pm_timer=True)
    assert bytes(files["etc/acpi/tables"]) == tables.placed(_TABLES)
    assert bytes(files["etc/acpi/rsdp"]) == rsdp(_TABLES + tables.xsdt)


def test_the_timer_is_in_the_fadt() -> None:
    block = acpi_tables(1, pm_timer=True).placed(0)
    fadt = block[block.index(b"FACP") :]
    assert struct.unpack_from("<I", fadt, 76) == (0x608,)
    assert fadt[91] == 4
    assert struct.unpack_from("<BBBBQ", fadt, 208) == (1, 32, 0, 3, 0x608)
