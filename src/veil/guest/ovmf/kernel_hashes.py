# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of hashes by which firmware checks kernel, initrd and command line that the host gives it.

edk2, OvmfPkg/AmdSev/BlobVerifierLibSevHashes; QEMU, target/i386/sev.c (SevHashTable). The table is measured, so the
files are as well.
"""

from __future__ import annotations

import hashlib
import struct
import uuid

from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["HASHES_SIZE", "hashes_page"]

_TABLE = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_COMMAND_LINE = uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_INITRD = uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
_KERNEL = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b")

#: GUID, length of the whole, and an entry's hash
_HEAD = struct.Struct("<16sH")
_HASH = hashlib.sha256().digest_size
_LENGTH = _HEAD.size + 3 * (_HEAD.size + _HASH)
#: with the padding to a multiple of 16
HASHES_SIZE = -(-_LENGTH // 16) * 16


def hashes_page(address: int, kernel: bytes, initrd: bytes, command_line: bytes) -> bytes:
    """The page with the table at `address`; `command_line` with its NUL, as the firmware gets it."""
    table = _HEAD.pack(_TABLE.bytes_le, _LENGTH)
    for identity, blob in ((_COMMAND_LINE, command_line), (_INITRD, initrd), (_KERNEL, kernel)):
        table += _HEAD.pack(identity.bytes_le, _HEAD.size + _HASH) + hashlib.sha256(blob).digest()
    return (bytes(address % PAGE_SIZE) + table).ljust(PAGE_SIZE, b"\0")
