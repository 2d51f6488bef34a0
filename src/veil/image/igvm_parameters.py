# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host deposits in the parameter areas of an IGVM file. None of it is measured: guests must not trust it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from veil.formats.acpi import madt
from veil.formats.board import q35_pci_memory
from veil.formats.igvm import HeaderType
from veil.formats.igvm_directives import MemoryMapEntry, MemoryRange, MemoryType, MmioRanges
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.errors import GuestImageError
from veil.guest.igvm.file import Area, ParameterRequest
from veil.image.device_tree import Node, cells, flattened

__all__ = ["HostParameters", "filled_area", "takes_command_line"]


@dataclass(frozen=True)
class HostParameters:
    """What this host has to tell."""

    memory: Sequence[tuple[int, int]]
    """(GPA, length) of each piece of RAM that the guest may use, by address."""
    vcpus: int
    command_line: str = ""


def filled_area(area: Area, host: HostParameters) -> bytes:
    """The area as it is imported. Raises GuestImageError for a parameter that this host does not have, or that does
    not fit."""
    content = bytearray(area.size)
    if area.initial is not None:
        content[:] = area.initial
    for request in area.parameters:
        value = _value(request, host)
        end = request.offset + len(value)
        if end > area.size:
            raise GuestImageError(
                f"{request.where}: it takes {len(value)} bytes, and its area has {area.size - request.offset} left at "
                f"{request.offset:#x}"
            )
        content[request.offset : end] = value
    return bytes(content)


def takes_command_line(areas: Iterable[Area]) -> bool:
    """Is the host's command line in any of them?"""
    kinds = (HeaderType.COMMAND_LINE, HeaderType.DEVICE_TREE)
    return any(request.kind in kinds for area in areas for request in area.parameters)


def _value(request: ParameterRequest, host: HostParameters) -> bytes:
    make = _VALUES.get(request.kind)
    if make is None:
        raise GuestImageError(
            f"{request.where}: this machine has no {request.kind.name} to give; it has: "
            f"{', '.join(kind.name for kind in _VALUES)}"
        )
    return make(host)


def _memory_map(host: HostParameters) -> bytes:
    entries = [
        MemoryMapEntry(start // PAGE_SIZE, size // PAGE_SIZE, MemoryType.MEMORY) for start, size in sorted(host.memory)
    ]
    return b"".join(map(bytes, (*entries, MemoryMapEntry())))


def _mmio_ranges(host: HostParameters) -> bytes:
    """The window of the PCI bus; there is no second one."""
    start, end = q35_pci_memory(host.memory[0][1])
    ranges = MmioRanges()
    ranges.mmio_ranges[0] = MemoryRange(start // PAGE_SIZE, (end - start) // PAGE_SIZE)
    return bytes(ranges)


def _device_tree(host: HostParameters) -> bytes:
    """Memory, processors and the command line; PCI has its devices find themselves."""
    processors = {
        f"cpu@{number:x}": Node({"device_type": b"cpu\0", "reg": cells(number), "status": b"okay\0"})
        for number in range(host.vcpus)
    }
    memory = {
        f"memory@{start:x}": Node(
            {
                "device_type": b"memory\0",
                "reg": struct.pack(">QQ", start, size),
                "microsoft,igvm-type": cells(MemoryType.MEMORY),
            }
        )
        for start, size in sorted(host.memory)
    }
    return flattened(
        Node(
            {"#address-cells": cells(2), "#size-cells": cells(2), "model": b"veil\0", "compatible": b"veil,snp\0"},
            {
                "chosen": Node({"bootargs": host.command_line.encode() + b"\0"}),
                "cpus": Node({"#address-cells": cells(1), "#size-cells": cells(0)}, processors),
                **memory,
            },
        )
    )


_VALUES: dict[HeaderType, Callable[[HostParameters], bytes]] = {
    HeaderType.VP_COUNT_PARAMETER: lambda host: struct.pack("<I", host.vcpus),
    HeaderType.MEMORY_MAP: _memory_map,
    HeaderType.MMIO_RANGES: _mmio_ranges,
    HeaderType.COMMAND_LINE: lambda host: host.command_line.encode() + b"\0",
    # Bit 0, memory_is_shared, is clear: the host has assigned all memory to the guest.
    HeaderType.ENVIRONMENT_INFO_PARAMETER: lambda host: struct.pack("<I", 0),
    HeaderType.DEVICE_TREE: _device_tree,
    HeaderType.MADT: lambda host: madt(host.vcpus, q35=True),
}
