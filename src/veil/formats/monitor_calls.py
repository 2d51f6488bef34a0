# SPDX-License-Identifier: GPL-2.0-or-later
"""What users may ask VeilMon itself over the channel, and what it answers to a request for attestation."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from veil.formats.errors import FormatError

__all__ = ["AttestedAnswer", "MonitorCall"]

#: u32 lengths of report, services manifest and certificates, which follow
_LENGTHS = struct.Struct("<III")


class MonitorCall(enum.IntEnum):
    """Calls of `veil.formats.services_manifest.CHANNEL_SERVICE`."""

    PING = 0
    """The body comes back."""
    ATTEST = 1
    """Nonce (NONCE_BYTES) -> `AttestedAnswer`."""
    STATUS = 2
    """-> JSON: what runs under VeilMon. For readers and owners."""


class AttestedAnswer(NamedTuple):
    """The answer to ATTEST. Nothing of it is verified by parsing it."""

    report: bytes
    """ATTESTATION_REPORT (`veil.formats.attestation_report`)."""
    manifest: bytes
    """Services manifest (`veil.formats.services_manifest`)."""
    certificates: bytes
    """Certificate table of the host, empty if it gave none (`veil.formats.certificate_table`)."""

    def pack(self) -> bytes:
        """For the wire."""
        return _LENGTHS.pack(*map(len, self)) + b"".join(self)

    @classmethod
    def parse(cls, body: bytes) -> AttestedAnswer:
        """From the wire. Raises FormatError unless the parts are exactly the body."""
        if len(body) < _LENGTHS.size:
            raise FormatError("the attestation's answer is cut short")
        lengths = _LENGTHS.unpack_from(body)
        if sum(lengths) != len(body) - _LENGTHS.size:
            raise FormatError(f"the attestation's answer of {len(body)} bytes claims parts of {lengths}")
        parts, at = [], _LENGTHS.size
        for length in lengths:
            parts.append(body[at : at + length])
            at += length
        return cls(*parts)
