# SPDX-License-Identifier: GPL-2.0-or-later
"""The services manifest: what was attested can be read in one way only."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from fuzz.target import Target
from veil.formats.services_manifest import CHANNEL_SERVICE, SERVICES_MANIFEST, pack_manifest, parse_manifest

__all__ = ["TARGETS"]


def _run(data: bytes) -> None:
    services = parse_manifest(data)
    assert pack_manifest(services) == data
    assert sum(map(len, services.values())) < len(data)


def _seeds() -> Iterable[bytes]:
    yield pack_manifest({})
    yield pack_manifest({CHANNEL_SERVICE: bytes(range(120))})
    yield pack_manifest({CHANNEL_SERVICE: b"key", uuid.UUID(int=1): b"", uuid.UUID(int=2): b"another"})


TARGETS = (
    Target("manifest", _run, _seeds, words=(SERVICES_MANIFEST.bytes_le, CHANNEL_SERVICE.bytes_le), max_bytes=1024),
)
