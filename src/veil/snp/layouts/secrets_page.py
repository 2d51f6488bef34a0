# SPDX-License-Identifier: GPL-2.0-or-later
"""The secrets page of an SNP guest (56860, table "Secrets Page Format"; the SVSM's part: 58019, table 3)."""

from __future__ import annotations

import ctypes

from veil.formats.guest_message import KEY_BYTES
from veil.formats.offsets import check_offsets
from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["SECRETS_VERSION", "SVSM_MAX_VERSION", "SecretsPage"]

#: of the page's layout, as the secure processor writes it
SECRETS_VERSION = 3
#: the highest version of the SVSM protocol's core that an SVSM announces here
SVSM_MAX_VERSION = 1

_U8, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64


class SecretsPage(ctypes.LittleEndianStructure):
    """One page. The secure processor fills in the version and the keys, an SVSM the rest for the kernel above it."""

    _pack_ = 1
    _fields_ = [
        ("version", _U32),
        ("imi_en", _U32),
        ("fms", _U32),
        ("reserved_00c", _U32),
        ("gosvw", _U8 * 16),
        ("vmpck", _U8 * KEY_BYTES * 4),
        ("os_reserved", _U8 * 96),
        ("vmsa_tweak_bitmap", _U8 * 64),
        ("svsm_base", _U64),
        ("svsm_size", _U64),
        ("svsm_caa", _U64),
        ("svsm_max_version", _U32),
        ("svsm_guest_vmpl", _U8),
        ("reserved_15d", _U8 * (PAGE_SIZE - 0x15D)),
    ]

    version: int
    vmpck: ctypes.Array[ctypes.Array[ctypes.c_uint8]]
    """VMPCK0 to VMPCK3, of the VMPLs of these numbers."""
    svsm_base: int
    svsm_size: int
    svsm_caa: int
    svsm_max_version: int
    svsm_guest_vmpl: int

    @classmethod
    def vmpck_offset(cls, vmpl: int) -> int:
        """Where in the page the key of this VMPL is, KEY_BYTES long."""
        return cls.vmpck.offset + vmpl * KEY_BYTES  # type: ignore[attr-defined, no-any-return]


check_offsets(
    SecretsPage,
    PAGE_SIZE,
    {
        "gosvw": 0x010, "vmpck": 0x020, "os_reserved": 0x0A0, "vmsa_tweak_bitmap": 0x100, "svsm_base": 0x140,
        "svsm_size": 0x148, "svsm_caa": 0x150, "svsm_max_version": 0x158, "svsm_guest_vmpl": 0x15C,
    },
)  # fmt: skip
