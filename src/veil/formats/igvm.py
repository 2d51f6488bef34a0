# SPDX-License-Identifier: GPL-2.0-or-later
"""The IGVM file format: the headers of a file, its platforms and what comes before directives (`igvm_directives`).

Source: the crate `igvm_defs` of Microsoft's repository `igvm` (igvm_defs/src/lib.rs), which is the format's
definition; its names are kept. Everything is little-endian. A file is a fixed header, variable headers (type, length,
structure, each at a multiple of 8), and data that these name by offsets from the file's begin.
"""

from __future__ import annotations

import ctypes
import enum

from veil.formats.offsets import check_offsets

__all__ = [
    "ALIGNMENT",
    "DIRECTIVES",
    "FORMAT_VERSIONS",
    "INITIALIZATIONS",
    "MAGIC",
    "OPTIONAL",
    "PLATFORMS",
    "PLATFORM_VERSION",
    "Architecture",
    "CcaPolicy",
    "CorimData",
    "FixedHeader",
    "FixedHeaderV2",
    "GuestPolicy",
    "HeaderType",
    "PageTableRelocation",
    "PlatformType",
    "RelocatableRegion",
    "SupportedPlatform",
    "VariableHeader",
]

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64

MAGIC = int.from_bytes(b"IGVM", "little")
#: known ones
FORMAT_VERSIONS = (1, 2)
#: of each variable header
ALIGNMENT = 8
#: in a type: loaders that do not know it may leave it out
OPTIONAL = 1 << 31

# The three sections of variable headers, in the order in which a file has them.
PLATFORMS = range(0x001, 0x101)
INITIALIZATIONS = range(0x101, 0x201)
DIRECTIVES = range(0x301, 0x401)


class Architecture(enum.IntEnum):
    """Of version 2 and later."""

    X64 = 0
    AARCH64 = 1


class HeaderType(enum.IntEnum):
    """IGVM_VHT_*."""

    SUPPORTED_PLATFORM = 0x001
    GUEST_POLICY = 0x101
    RELOCATABLE_REGION = 0x102
    PAGE_TABLE_RELOCATION_REGION = 0x103
    CORIM_DOCUMENT = 0x104
    CORIM_SIGNATURE = 0x105
    CCA_POLICY = 0x106
    PARAMETER_AREA = 0x301
    PAGE_DATA = 0x302
    PARAMETER_INSERT = 0x303
    VP_CONTEXT = 0x304
    REQUIRED_MEMORY = 0x305
    VP_COUNT_PARAMETER = 0x307
    SRAT = 0x308
    MADT = 0x309
    MMIO_RANGES = 0x30A
    SNP_ID_BLOCK = 0x30B
    MEMORY_MAP = 0x30C
    ERROR_RANGE = 0x30D
    COMMAND_LINE = 0x30E
    SLIT = 0x30F
    PPTT = 0x310
    VBS_MEASUREMENT = 0x311
    DEVICE_TREE = 0x312
    ENVIRONMENT_INFO_PARAMETER = 0x313


class PlatformType(enum.IntEnum):
    """Of a platform header."""

    NATIVE = 0
    VSM_ISOLATION = 1
    SEV_SNP = 2
    TDX = 3
    SEV = 4
    SEV_ES = 5
    CCA = 6


#: of every platform so far
PLATFORM_VERSION = 1


class FixedHeader(ctypes.LittleEndianStructure):
    """At the begin of every file. The checksum, CRC-32, spans it (with zero in its place) and the variable headers."""

    _pack_ = 1
    _fields_ = [
        ("magic", _U32),
        ("format_version", _U32),
        ("variable_header_offset", _U32),
        ("variable_header_size", _U32),
        ("total_file_size", _U32),
        ("checksum", _U32),
    ]

    magic: int
    format_version: int
    variable_header_offset: int
    variable_header_size: int
    total_file_size: int
    checksum: int


class FixedHeaderV2(FixedHeader):
    """From version 2 on."""

    _pack_ = 1
    _fields_ = [("architecture", _U32), ("page_size", _U32)]

    architecture: int
    page_size: int


class VariableHeader(ctypes.LittleEndianStructure):
    """Before each structure. `length` counts the structure alone; it is padded with zeros to a multiple of 8."""

    _pack_ = 1
    _fields_ = [("type", _U32), ("length", _U32)]

    type: int
    length: int


class SupportedPlatform(ctypes.LittleEndianStructure):
    """A platform, and the bit by which other structures say that they are for it."""

    _pack_ = 1
    _fields_ = [
        ("compatibility_mask", _U32),
        ("highest_vtl", _U8),
        ("platform_type", _U8),
        ("platform_version", _U16),
        ("shared_gpa_boundary", _U64),
    ]

    compatibility_mask: int
    highest_vtl: int
    platform_type: int
    platform_version: int
    shared_gpa_boundary: int


class GuestPolicy(ctypes.LittleEndianStructure):
    """The policy of the launch."""

    _pack_ = 1
    _fields_ = [("policy", _U64), ("compatibility_mask", _U32), ("reserved", _U32)]

    policy: int
    compatibility_mask: int
    reserved: int


class RelocatableRegion(ctypes.LittleEndianStructure):
    """Memory that a loader may put elsewhere."""

    _pack_ = 1
    _fields_ = [
        ("compatibility_mask", _U32),
        ("vp_index", _U16),
        ("vtl", _U8),
        ("flags", _U8),
        ("relocation_alignment", _U64),
        ("relocation_region_gpa", _U64),
        ("relocation_region_size", _U64),
        ("minimum_relocation_gpa", _U64),
        ("maximum_relocation_gpa", _U64),
    ]

    compatibility_mask: int


class PageTableRelocation(ctypes.LittleEndianStructure):
    """Page tables that it must mend if it does."""

    _pack_ = 1
    _fields_ = [
        ("compatibility_mask", _U32),
        ("vp_index", _U16),
        ("vtl", _U8),
        ("reserved", _U8),
        ("gpa", _U64),
        ("size", _U64),
        ("used_size", _U64),
    ]

    compatibility_mask: int


class CorimData(ctypes.LittleEndianStructure):
    """Where a document for verifiers, or its signature, is in the file."""

    _pack_ = 1
    _fields_ = [("compatibility_mask", _U32), ("file_offset", _U32), ("size_bytes", _U32), ("reserved", _U32)]

    compatibility_mask: int
    file_offset: int
    size_bytes: int
    reserved: int


class CcaPolicy(ctypes.LittleEndianStructure):
    """Of Arm's realms."""

    _pack_ = 1
    _fields_ = [
        ("compatibility_mask", _U32),
        ("reserved", _U32),
        ("attributes_required_zeroes", _U64),
        ("attributes_required_ones", _U64),
        ("hash_algorithm", _U8),
        ("lfa_policy", _U8),
        ("reserved2", _U8 * 6),
    ]

    compatibility_mask: int


check_offsets(FixedHeader, 24, {"variable_header_offset": 8, "total_file_size": 16, "checksum": 20})
check_offsets(FixedHeaderV2, 32, {"checksum": 20, "architecture": 24, "page_size": 28})
check_offsets(VariableHeader, 8, {"length": 4})
check_offsets(SupportedPlatform, 16, {"highest_vtl": 4, "platform_type": 5, "platform_version": 6})
check_offsets(GuestPolicy, 16, {"compatibility_mask": 8})
check_offsets(RelocatableRegion, 48, {"relocation_region_gpa": 16, "maximum_relocation_gpa": 40})
check_offsets(PageTableRelocation, 32, {"gpa": 8, "used_size": 24})
check_offsets(CorimData, 16, {"file_offset": 4, "size_bytes": 8})
check_offsets(CcaPolicy, 32, {"attributes_required_zeroes": 8, "hash_algorithm": 24})
