# SPDX-License-Identifier: GPL-2.0-or-later
"""The IGVM file format: all that a loader of SEV-SNP guests reads, and what it deposits for them.

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
    "ErrorRange",
    "FixedHeader",
    "FixedHeaderV2",
    "GuestPolicy",
    "HeaderType",
    "IdPublicKey",
    "IdSignature",
    "MemoryMapEntry",
    "MemoryRange",
    "MemoryType",
    "MmioRanges",
    "PageData",
    "PageDataFlags",
    "PageDataType",
    "PageTableRelocation",
    "Parameter",
    "ParameterArea",
    "ParameterInsert",
    "PlatformType",
    "RelocatableRegion",
    "RequiredMemory",
    "RequiredMemoryFlags",
    "SnpIdBlock",
    "SupportedPlatform",
    "VariableHeader",
    "VbsMeasurement",
    "VpContext",
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


class PageDataType(enum.IntEnum):
    """What a page of data is."""

    NORMAL = 0
    SECRETS = 1
    CPUID_DATA = 2
    CPUID_XF = 3


class PageDataFlags(enum.IntFlag):
    """How it is loaded."""

    IS_2MB_PAGE = 1 << 0
    UNMEASURED = 1 << 1
    SHARED = 1 << 2


class RequiredMemoryFlags(enum.IntFlag):
    """Of required memory."""

    VTL2_PROTECTABLE = 1 << 0


class MemoryType(enum.IntEnum):
    """Of an entry of the memory map."""

    MEMORY = 0
    PLATFORM_RESERVED = 1
    PERSISTENT = 2
    VTL2_PROTECTABLE = 3


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


class ParameterArea(ctypes.LittleEndianStructure):
    """Room for parameters, for every platform; `file_offset` 0: zeros to begin with."""

    _pack_ = 1
    _fields_ = [("number_of_bytes", _U64), ("parameter_area_index", _U32), ("file_offset", _U32)]

    number_of_bytes: int
    parameter_area_index: int
    file_offset: int


class PageData(ctypes.LittleEndianStructure):
    """One page, of 4 KiB or 2 MiB; `file_offset` 0: zeros, which are loaded and measured as any other content."""

    _pack_ = 1
    _fields_ = [
        ("gpa", _U64),
        ("compatibility_mask", _U32),
        ("file_offset", _U32),
        ("flags", _U32),
        ("data_type", _U16),
        ("reserved", _U16),
    ]

    gpa: int
    compatibility_mask: int
    file_offset: int
    flags: int
    data_type: int
    reserved: int


class ParameterInsert(ctypes.LittleEndianStructure):
    """Where a parameter area is imported, as unmeasured pages."""

    _pack_ = 1
    _fields_ = [("gpa", _U64), ("compatibility_mask", _U32), ("parameter_area_index", _U32)]

    gpa: int
    compatibility_mask: int
    parameter_area_index: int


class Parameter(ctypes.LittleEndianStructure):
    """Where in its area the loader deposits a parameter, whose type is the header's; for every platform."""

    _pack_ = 1
    _fields_ = [("parameter_area_index", _U32), ("byte_offset", _U32)]

    parameter_area_index: int
    byte_offset: int


class VpContext(ctypes.LittleEndianStructure):
    """A VMSA, 4 KiB of the file's data, and the page where it goes."""

    _pack_ = 1
    _fields_ = [
        ("gpa", _U64),
        ("compatibility_mask", _U32),
        ("file_offset", _U32),
        ("vp_index", _U16),
        ("reserved", _U16),
    ]

    gpa: int
    compatibility_mask: int
    file_offset: int
    vp_index: int
    reserved: int


class RequiredMemory(ctypes.LittleEndianStructure):
    """There must be memory."""

    _pack_ = 1
    _fields_ = [
        ("gpa", _U64),
        ("compatibility_mask", _U32),
        ("number_of_bytes", _U32),
        ("flags", _U32),
        ("reserved", _U32),
    ]

    gpa: int
    compatibility_mask: int
    number_of_bytes: int
    flags: int
    reserved: int


class ErrorRange(ctypes.LittleEndianStructure):
    """Shared pages in which the guest tells the host of errors."""

    _pack_ = 1
    _fields_ = [("gpa", _U64), ("compatibility_mask", _U32), ("size_bytes", _U32)]

    gpa: int
    compatibility_mask: int
    size_bytes: int


class IdSignature(ctypes.LittleEndianStructure):
    """Of an ID block, or of the key that signed it; little-endian."""

    _pack_ = 1
    _fields_ = [("r_comp", _U8 * 72), ("s_comp", _U8 * 72)]

    r_comp: ctypes.Array[ctypes.c_uint8]
    s_comp: ctypes.Array[ctypes.c_uint8]


class IdPublicKey(ctypes.LittleEndianStructure):
    """Of an ID block, or of its author; little-endian."""

    _pack_ = 1
    _fields_ = [("curve", _U32), ("reserved", _U32), ("qx", _U8 * 72), ("qy", _U8 * 72)]

    curve: int
    reserved: int
    qx: ctypes.Array[ctypes.c_uint8]
    qy: ctypes.Array[ctypes.c_uint8]


class SnpIdBlock(ctypes.LittleEndianStructure):
    """The ID block and its authentication, but for the policy."""

    _pack_ = 1
    _fields_ = [
        ("compatibility_mask", _U32),
        ("author_key_enabled", _U8),
        ("reserved", _U8 * 3),
        ("ld", _U8 * 48),
        ("family_id", _U8 * 16),
        ("image_id", _U8 * 16),
        ("version", _U32),
        ("guest_svn", _U32),
        ("id_key_algorithm", _U32),
        ("author_key_algorithm", _U32),
        ("id_key_signature", IdSignature),
        ("id_public_key", IdPublicKey),
        ("author_key_signature", IdSignature),
        ("author_public_key", IdPublicKey),
    ]

    compatibility_mask: int
    author_key_enabled: int
    reserved: ctypes.Array[ctypes.c_uint8]
    ld: ctypes.Array[ctypes.c_uint8]
    family_id: ctypes.Array[ctypes.c_uint8]
    image_id: ctypes.Array[ctypes.c_uint8]
    version: int
    guest_svn: int
    id_key_algorithm: int
    author_key_algorithm: int
    id_key_signature: IdSignature
    id_public_key: IdPublicKey
    author_key_signature: IdSignature
    author_public_key: IdPublicKey


class VbsMeasurement(ctypes.LittleEndianStructure):
    """Of Hyper-V's isolation."""

    _pack_ = 1
    _fields_ = [
        ("compatibility_mask", _U32),
        *(
            (name, _U32)
            for name in (
                "version", "product_id", "module_id", "security_version", "policy_flags", "boot_digest_algo",
                "signing_algo",
            )
        ),
        ("boot_measurement_digest", _U8 * 64),
        ("signature", _U8 * 256),
        ("public_key", _U8 * 512),
    ]  # fmt: skip

    compatibility_mask: int


# What loaders deposit.


class MemoryMapEntry(ctypes.LittleEndianStructure):
    """The map is an array of them, sorted; its last has no pages."""

    _pack_ = 1
    _fields_ = [
        ("starting_gpa_page_number", _U64),
        ("number_of_pages", _U64),
        ("entry_type", _U16),
        ("flags", _U16),
        ("reserved", _U32),
    ]


class MemoryRange(ctypes.LittleEndianStructure):
    """Pages."""

    _pack_ = 1
    _fields_ = [("starting_gpa_page_number", _U64), ("number_of_pages", _U64)]


class MmioRanges(ctypes.LittleEndianStructure):
    """Where devices are."""

    _pack_ = 1
    _fields_ = [("mmio_ranges", MemoryRange * 2)]

    mmio_ranges: ctypes.Array[MemoryRange]


check_offsets(FixedHeader, 24, {"variable_header_offset": 8, "total_file_size": 16, "checksum": 20})
check_offsets(FixedHeaderV2, 32, {"checksum": 20, "architecture": 24, "page_size": 28})
check_offsets(VariableHeader, 8, {"length": 4})
check_offsets(SupportedPlatform, 16, {"highest_vtl": 4, "platform_type": 5, "platform_version": 6})
check_offsets(GuestPolicy, 16, {"compatibility_mask": 8})
check_offsets(RelocatableRegion, 48, {"relocation_region_gpa": 16, "maximum_relocation_gpa": 40})
check_offsets(PageTableRelocation, 32, {"gpa": 8, "used_size": 24})
check_offsets(CorimData, 16, {"file_offset": 4, "size_bytes": 8})
check_offsets(CcaPolicy, 32, {"attributes_required_zeroes": 8, "hash_algorithm": 24})
check_offsets(ParameterArea, 16, {"parameter_area_index": 8, "file_offset": 12})
check_offsets(PageData, 24, {"compatibility_mask": 8, "file_offset": 12, "flags": 16, "data_type": 20})
check_offsets(ParameterInsert, 16, {"compatibility_mask": 8, "parameter_area_index": 12})
check_offsets(Parameter, 8, {"byte_offset": 4})
check_offsets(VpContext, 20, {"compatibility_mask": 8, "file_offset": 12, "vp_index": 16})
check_offsets(RequiredMemory, 24, {"compatibility_mask": 8, "number_of_bytes": 12, "flags": 16})
check_offsets(ErrorRange, 16, {"compatibility_mask": 8, "size_bytes": 12})
check_offsets(IdSignature, 144, {"s_comp": 72})
check_offsets(IdPublicKey, 152, {"qx": 8, "qy": 80})
check_offsets(
    SnpIdBlock,
    696,
    {"ld": 8, "family_id": 56, "version": 88, "id_key_signature": 104, "id_public_key": 248, "author_public_key": 544},
)
check_offsets(VbsMeasurement, 864, {"boot_measurement_digest": 32, "signature": 96, "public_key": 352})
check_offsets(MemoryMapEntry, 24, {"number_of_pages": 8, "entry_type": 16})
check_offsets(MmioRanges, 32, {"mmio_ranges": 0})
