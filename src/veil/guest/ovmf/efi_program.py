# SPDX-License-Identifier: GPL-2.0-or-later
"""EFI programs, which firmware starts in a kernel's place: a unified kernel image, a shell, a test.

Microsoft PE format, "MS-DOS Stub", "COFF File Header", "Optional Header".
"""

from __future__ import annotations

import struct
from pathlib import Path

from veil.guest.errors import GuestImageError
from veil.guest.linux.bzimage import is_bzimage
from veil.guest.named_files import read_named_file

__all__ = ["read_efi_program"]

_MAX_FILE = 1 << 30
_DOS_MAGIC, _PE_OFFSET = b"MZ", 0x3C
_PE_MAGIC = b"PE\0\0"
_MACHINE, _OPTIONAL_HEADER, _SUBSYSTEM = 4, 24, 24 + 68
_AMD64 = 0x8664
_PE32_PLUS = 0x20B
_EFI_APPLICATION = 10


def read_efi_program(path: Path) -> bytes | None:
    """The file's content; None if it is something else, as a bzImage, which has these headers too.

    Raises GuestImageError if it cannot be read, or is a program for another machine.
    """
    data = read_named_file(path, "the kernel", _MAX_FILE)
    if not data.startswith(_DOS_MAGIC) or is_bzimage(data) or len(data) < _PE_OFFSET + 4:
        return None
    (header,) = struct.unpack_from("<I", data, _PE_OFFSET)
    if data[header : header + len(_PE_MAGIC)] != _PE_MAGIC or header + _SUBSYSTEM + 2 > len(data):
        return None
    machine, kind, subsystem = (
        struct.unpack_from("<H", data, header + at)[0] for at in (_MACHINE, _OPTIONAL_HEADER, _SUBSYSTEM)
    )
    if (machine, kind, subsystem) != (_AMD64, _PE32_PLUS, _EFI_APPLICATION):
        raise GuestImageError(f"{path}: a PE file, but no EFI application for x86-64")
    return data
