# SPDX-License-Identifier: GPL-2.0-or-later
"""EFI programs of a few instructions: PE32+ files with one section, which run wherever they are put."""

from __future__ import annotations

import struct

from tests.machine_code import assemble

__all__ = ["efi_program"]

_PE, _OPTIONAL_SIZE = 0x40, 0xF0
_ALIGNMENT, _FILE_ALIGNMENT = 0x1000, 0x200
_CODE_AT = _ALIGNMENT


def efi_program(code: str) -> bytes:
    """`code` begins at its entry point, with edk2's own stack, tables and #VC handler."""
    section = assemble(code, _CODE_AT)
    raw = -(-len(section) // _FILE_ALIGNMENT) * _FILE_ALIGNMENT
    image = _CODE_AT + -(-len(section) // _ALIGNMENT) * _ALIGNMENT
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", _PE)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, _OPTIONAL_SIZE, 0x22)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, raw, 0, 0, _CODE_AT, _CODE_AT)
    optional += struct.pack("<QII6HI", 0, _ALIGNMENT, _FILE_ALIGNMENT, 0, 0, 0, 0, 0, 0, 0)
    optional += struct.pack("<IIIHH4QII", image, _FILE_ALIGNMENT, 0, 10, 0, 0, 0, 0, 0, 0, 16)
    optional = optional.ljust(_OPTIONAL_SIZE, b"\0")
    header = struct.pack("<8sIIIIIIHHI", b".text", len(section), _CODE_AT, raw, _FILE_ALIGNMENT, 0, 0, 0, 0, 0x60000020)
    return (dos + coff + optional + header).ljust(_FILE_ALIGNMENT, b"\0") + section.ljust(raw, b"\0")
