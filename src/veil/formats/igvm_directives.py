# SPDX-License-Identifier: GPL-2.0-or-later
"""The IGVM file format: the directives, which say what is loaded, and what a loader deposits for the guest.

Source: as of `igvm`.
"""

from __future__ import annotations

import ctypes
import enum

from veil.formats.offsets import check_offsets

__all__ = [
    "ErrorRange",
    "IdPublicKey",
    "IdSignature",
    "MemoryMapEntry",
    "MemoryRange",
    "MemoryType",
    "MmioRanges",
    "PageData",
    "PageDataFlags",
    "PageDataType",
    "Parameter",
    "ParameterArea",
    "ParameterInsert",
    "RequiredMemory",
    "RequiredMemoryFlags",
    "SnpIdBlock",
    "VbsMeasurement",
    "VpContext",
]

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


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
