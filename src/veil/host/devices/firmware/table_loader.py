# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables as files, and the script by which firmware puts them in place (QEMU, bios-linker-loader.c)."""

from __future__ import annotations

import struct

from veil.formats.acpi import RSDP_CHECKSUMS, RSDP_POINTERS, RSDP_SIZE, Checksum, Pointer, acpi_tables, rsdp

__all__ = ["acpi_files"]

_TABLES, _RSDP, _SCRIPT = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"

_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_HIGH_MEMORY, _BELOW_1_MIB = 1, 2
_COMMAND_SIZE = 128


def acpi_files(vcpus: int, pci_memory: tuple[int, int]) -> dict[str, bytes]:
    """The tables, the RSDP and the script. Addresses in them are offsets into the tables' file, checksums zero."""
    tables = acpi_tables(vcpus, q35=True, pci_memory=pci_memory)
    root = bytearray(rsdp(tables.xsdt, tables.rsdt or 0))
    for checksum in RSDP_CHECKSUMS:
        root[checksum.offset] = 0
    assert len(root) == RSDP_SIZE
    script = [
        _command("<I56sIB", _ALLOCATE, _RSDP, 16, _BELOW_1_MIB),
        _command("<I56sIB", _ALLOCATE, _TABLES, 64, _HIGH_MEMORY),
        *(_add_pointer(_TABLES, pointer) for pointer in tables.pointers),
        *(_add_checksum(_TABLES, checksum) for checksum in tables.checksums),
        *(_add_pointer(_RSDP, pointer) for pointer in RSDP_POINTERS),
        *(_add_checksum(_RSDP, checksum) for checksum in RSDP_CHECKSUMS),
    ]
    return {_TABLES: tables.block, _RSDP: bytes(root), _SCRIPT: b"".join(script)}


def _command(form: str, *values: int | str) -> bytes:
    packed = struct.pack(form, *(value.encode() if isinstance(value, str) else value for value in values))
    return packed.ljust(_COMMAND_SIZE, b"\0")


def _add_pointer(place: str, pointer: Pointer) -> bytes:
    return _command("<I56s56sIB", _ADD_POINTER, place, _TABLES, pointer.offset, pointer.size)


def _add_checksum(place: str, checksum: Checksum) -> bytes:
    return _command("<I56sIII", _ADD_CHECKSUM, place, checksum.offset, checksum.start, checksum.length)
