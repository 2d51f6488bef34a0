# SPDX-License-Identifier: GPL-2.0-or-later
"""The certificates that a host gives with an extended report (GHCB, 56421, "SNP Extended Guest Request").

A list of {GUID, u32 offset, u32 length} that ends with 24 zero bytes, then the certificates (DER). GUIDs are in the
byte order of RFC 9562 here, unlike those of SVSM manifests.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping

from veil.formats.errors import FormatError

__all__ = ["ARK", "ASK", "CRL", "VCEK", "VCEK_OID", "VLEK", "pack_certificates", "parse_certificates"]

VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
#: AMD SEV signing key; for a VLEK the ASVK
ASK = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
CRL = uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")

#: What the names of a VCEK's extensions begin with (AMD 57230, "VCEK Certificate Definitions").
VCEK_OID = "1.3.6.1.4.1.3704.1."

_ENTRY = struct.Struct("<16sII")
_END = bytes(_ENTRY.size)
_MAX_ENTRIES = 32


def pack_certificates(certificates: Mapping[uuid.UUID, bytes]) -> bytes:
    """The table's bytes, not padded."""
    offset = (len(certificates) + 1) * _ENTRY.size
    entries, blobs = [], []
    for guid, blob in certificates.items():
        entries.append(_ENTRY.pack(guid.bytes, offset, len(blob)))
        blobs.append(blob)
        offset += len(blob)
    return b"".join([*entries, _END, *blobs])


def parse_certificates(data: bytes) -> dict[uuid.UUID, bytes]:
    """GUID -> certificate. The host wrote it: raises FormatError for bad or repeated entries."""
    found: dict[uuid.UUID, bytes] = {}
    if not data.strip(b"\0"):
        return found
    for index in range(_MAX_ENTRIES + 1):
        at = index * _ENTRY.size
        raw = data[at : at + _ENTRY.size]
        if len(raw) < _ENTRY.size:
            raise FormatError("the certificate table has no end")
        if raw == _END:
            break
        guid_bytes, offset, length = _ENTRY.unpack(raw)
        guid = uuid.UUID(bytes=guid_bytes)
        if guid in found:
            raise FormatError(f"the certificate table has {guid} twice")
        if not length or offset < at + _ENTRY.size or offset + length > len(data):
            raise FormatError(f"the certificate table's entry {guid} points to {offset:#x}+{length:#x}")
        found[guid] = data[offset : offset + length]
    else:
        raise FormatError(f"the certificate table has more than {_MAX_ENTRIES} entries")
    return found
