# SPDX-License-Identifier: GPL-2.0-or-later
"""The services manifest of the SVSM attestation protocol (58019, section 7, table 12), and what Veil puts into it.

A header {GUID, u32 total length, u32 count}, `count` entries {GUID, u32 offset, u32 length}, then the services' own
manifests. GUIDs are mixed-endian (the first three fields little-endian).

The report's REPORT_DATA is SHA-512 of the asker's nonce (64 bytes) and the manifest.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping

from veil.formats.errors import FormatError

__all__ = [
    "CHANNEL_SERVICE",
    "NONCE_BYTES",
    "SERVICES_MANIFEST",
    "attested_report_data",
    "pack_manifest",
    "parse_manifest",
]

SERVICES_MANIFEST = uuid.UUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb")
#: VeilMon's own entry: the DER SubjectPublicKeyInfo of the key in which its channel ends
CHANNEL_SERVICE = uuid.UUID("7e11c0de-5ec5-4a27-9d1b-3a0f6b1c9e51")
NONCE_BYTES = 64

_HEADER = struct.Struct("<16sII")
_MAX_ENTRIES = 64


def pack_manifest(services: Mapping[uuid.UUID, bytes]) -> bytes:
    """The manifest of these services."""
    offset = (1 + len(services)) * _HEADER.size
    total = offset + sum(map(len, services.values()))
    parts = [_HEADER.pack(SERVICES_MANIFEST.bytes_le, total, len(services))]
    for guid, data in services.items():
        parts.append(_HEADER.pack(guid.bytes_le, offset, len(data)))
        offset += len(data)
    return b"".join([*parts, *services.values()])


def parse_manifest(data: bytes) -> dict[uuid.UUID, bytes]:
    """GUID -> the service's manifest. Raises FormatError for anything that `pack_manifest` would not have made.

    One set of services has one encoding only: what was attested cannot be read in two ways.
    """
    if len(data) < _HEADER.size:
        raise FormatError(f"a services manifest of {len(data)} bytes is cut short")
    guid, total, count = _HEADER.unpack_from(data)
    if guid != SERVICES_MANIFEST.bytes_le:
        raise FormatError("no services manifest: its GUID is another")
    if total != len(data) or count > _MAX_ENTRIES or (1 + count) * _HEADER.size > total:
        raise FormatError(f"the services manifest of {len(data)} bytes claims {total} bytes and {count} services")
    services: dict[uuid.UUID, bytes] = {}
    for index in range(count):
        name, offset, length = _HEADER.unpack_from(data, (1 + index) * _HEADER.size)
        services[uuid.UUID(bytes_le=name)] = data[offset : offset + length]
    if len(services) != count or pack_manifest(services) != data:
        raise FormatError("the services manifest's entries overlap, leave gaps, or name a service twice")
    return services


def attested_report_data(nonce: bytes, manifest: bytes) -> bytes:
    """REPORT_DATA for a manifest and the asker's nonce of 64 bytes (58019, section 7.1)."""
    if len(nonce) != NONCE_BYTES:
        raise FormatError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return hashlib.sha512(nonce + manifest).digest()
