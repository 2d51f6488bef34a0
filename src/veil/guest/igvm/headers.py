# SPDX-License-Identifier: GPL-2.0-or-later
"""The headers of an IGVM file, one by one: that each is whole, known, and where it may be. What they say: `file`."""

from __future__ import annotations

import ctypes
import zlib
from dataclasses import dataclass
from typing import Any

from veil.formats.igvm import (
    ALIGNMENT,
    DIRECTIVES,
    FORMAT_VERSIONS,
    INITIALIZATIONS,
    MAGIC,
    OPTIONAL,
    PLATFORMS,
    Architecture,
    CcaPolicy,
    CorimData,
    FixedHeader,
    FixedHeaderV2,
    GuestPolicy,
    HeaderType,
    PageTableRelocation,
    RelocatableRegion,
    SupportedPlatform,
    VariableHeader,
)
from veil.formats.igvm_directives import (
    ErrorRange,
    PageData,
    Parameter,
    ParameterArea,
    ParameterInsert,
    RequiredMemory,
    SnpIdBlock,
    VbsMeasurement,
    VpContext,
)
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.errors import GuestImageError

__all__ = ["PARAMETERS", "Header", "Headers", "read_headers"]

#: The headers by which a file asks for a value in a parameter area.
PARAMETERS = frozenset(
    {
        HeaderType.VP_COUNT_PARAMETER,
        HeaderType.SRAT,
        HeaderType.MADT,
        HeaderType.MMIO_RANGES,
        HeaderType.MEMORY_MAP,
        HeaderType.COMMAND_LINE,
        HeaderType.SLIT,
        HeaderType.PPTT,
        HeaderType.DEVICE_TREE,
        HeaderType.ENVIRONMENT_INFO_PARAMETER,
    }
)

_LAYOUTS: dict[HeaderType, type[ctypes.Structure]] = {
    HeaderType.SUPPORTED_PLATFORM: SupportedPlatform,
    HeaderType.GUEST_POLICY: GuestPolicy,
    HeaderType.RELOCATABLE_REGION: RelocatableRegion,
    HeaderType.PAGE_TABLE_RELOCATION_REGION: PageTableRelocation,
    HeaderType.CORIM_DOCUMENT: CorimData,
    HeaderType.CORIM_SIGNATURE: CorimData,
    HeaderType.CCA_POLICY: CcaPolicy,
    HeaderType.PARAMETER_AREA: ParameterArea,
    HeaderType.PAGE_DATA: PageData,
    HeaderType.PARAMETER_INSERT: ParameterInsert,
    HeaderType.VP_CONTEXT: VpContext,
    HeaderType.REQUIRED_MEMORY: RequiredMemory,
    HeaderType.SNP_ID_BLOCK: SnpIdBlock,
    HeaderType.ERROR_RANGE: ErrorRange,
    HeaderType.VBS_MEASUREMENT: VbsMeasurement,
    **dict.fromkeys(PARAMETERS, Parameter),
}
_SECTIONS = {PLATFORMS: "platforms", INITIALIZATIONS: "initializations", DIRECTIVES: "directives"}
_SECTION_NAMES = list(_SECTIONS.values())
#: number -> type, layout, its size, and which section it belongs to
_BY_NUMBER = {
    int(kind): (kind, layout, ctypes.sizeof(layout), next(at for at, types in enumerate(_SECTIONS) if kind in types))
    for kind, layout in _LAYOUTS.items()
}

_PREFIX = ctypes.sizeof(VariableHeader)


@dataclass(frozen=True, slots=True)
class Header:
    """One of the variable headers."""

    number: int
    at: int
    """Its offset in the file."""
    kind: HeaderType
    content: Any
    """The structure of this type, from `veil.formats.igvm`."""

    def __str__(self) -> str:
        return f"header {self.number} ({self.kind.name}, at {self.at:#x})"


@dataclass(frozen=True, slots=True)
class Headers:
    """All of a file's that this version knows, and where the file's data begins."""

    known: list[Header]
    data_start: int


def read_headers(data: bytes, name: str) -> Headers:
    """Check the fixed header and the shape of all others. Raises GuestImageError, one line; `name` is the file's."""
    fixed = _fixed_header(data, name)
    at, end = fixed.variable_header_offset, fixed.variable_header_offset + fixed.variable_header_size
    found: list[Header] = []
    number = section = 0
    while at < end:
        prefix = VariableHeader.from_buffer_copy(data, at)
        where = f"{name}: header {number} (type {prefix.type:#x}, at {at:#x})"
        length, begin = prefix.length, at + _PREFIX
        padded = -(-length // ALIGNMENT) * ALIGNMENT
        if padded > end - begin:
            raise GuestImageError(f"{where} has {length} bytes, and {end - begin} are left of the variable headers")
        if any(data[begin + length : begin + padded]):
            raise GuestImageError(f"{where}: the bytes that pad it to a multiple of {ALIGNMENT} are not zero")
        known = _BY_NUMBER.get(prefix.type & ~OPTIONAL)
        if known is not None:
            kind, layout, size, its = known
            if length != size:
                raise GuestImageError(f"{where}: {kind.name} has {size} bytes, not {length}")
            if its < section:
                raise GuestImageError(
                    f"{where}: {kind.name} belongs to the {_SECTION_NAMES[its]}, and the {_SECTION_NAMES[section]} "
                    "have begun"
                )
            section = its
            found.append(Header(number, at, kind, layout.from_buffer_copy(data, begin)))
        elif not prefix.type & OPTIONAL:
            raise GuestImageError(
                f"{where} is of a type that this version does not know, and the file says that it cannot be left out "
                f"(bit 31 is clear)"
            )
        at = begin + padded
        number += 1
    return Headers(found, end)


def _fixed_header(data: bytes, name: str) -> FixedHeader:
    if len(data) < ctypes.sizeof(FixedHeader) or data[:4] != MAGIC.to_bytes(4, "little"):
        raise GuestImageError(f'{name}: this is not an IGVM file: it does not begin with a header with "IGVM"')
    fixed = FixedHeader.from_buffer_copy(data)
    if fixed.format_version not in FORMAT_VERSIONS:
        raise GuestImageError(f"{name}: it has version {fixed.format_version} of the format, known are 1 and 2")
    if fixed.format_version > 1:
        fixed = _second_version(data, name)
    if fixed.total_file_size != len(data):
        raise GuestImageError(
            f"{name}: it says that it has {fixed.total_file_size} bytes, and has {len(data)}: copy it again"
        )
    size, start, length = ctypes.sizeof(fixed), fixed.variable_header_offset, fixed.variable_header_size
    if start < size or start % ALIGNMENT or length % ALIGNMENT or start + length > len(data):
        raise GuestImageError(
            f"{name}: its variable headers are {length:#x} bytes at {start:#x}: not whole multiples of {ALIGNMENT} "
            f"between the fixed header ({size} bytes) and the end of the file ({len(data):#x})"
        )
    expected, fixed.checksum = fixed.checksum, 0
    computed = zlib.crc32(data[start : start + length], zlib.crc32(bytes(fixed)))
    if computed != expected:
        raise GuestImageError(
            f"{name}: its headers have the checksum {computed:#010x}, and it says {expected:#010x}: they were damaged, "
            "or changed without it"
        )
    return fixed


def _second_version(data: bytes, name: str) -> FixedHeaderV2:
    if len(data) < ctypes.sizeof(FixedHeaderV2):
        raise GuestImageError(f"{name}: it ends in its fixed header, after {len(data)} bytes")
    fixed = FixedHeaderV2.from_buffer_copy(data)
    if fixed.architecture != Architecture.X64:
        raise GuestImageError(f"{name}: it is for another architecture ({fixed.architecture}) than x86-64 (0)")
    if fixed.page_size != PAGE_SIZE:
        raise GuestImageError(f"{name}: its pages have {fixed.page_size} bytes, this machine's have {PAGE_SIZE}")
    return fixed
