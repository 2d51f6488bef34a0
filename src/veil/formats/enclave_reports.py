# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-ENC says of enclaves to those outside: statements, words in the protected log, its manifest."""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from veil.formats.errors import FormatError

__all__ = ["EnclaveManifest", "EnclaveStatement", "EnclaveWord"]

_STATEMENT = struct.Struct("<8sQ48s64s")
_MAGIC = b"VEILENCS"


class EnclaveStatement(NamedTuple):
    """That an enclave of this measurement runs in the CVM, and asked for these 64 bytes to be said.

    The service's manifest, which a report of VMPL 0 binds, has the key that signs it.
    """

    enclave: int
    measurement: bytes
    data: bytes
    signature: bytes = b""
    """ECDSA over P-256 and SHA-256, DER."""

    @property
    def signed_bytes(self) -> bytes:
        """ "VEILENCS", u64 number of the enclave, 48 bytes measurement, 64 bytes data."""
        return _STATEMENT.pack(_MAGIC, self.enclave, self.measurement, self.data)

    def pack(self) -> bytes:
        """The signed bytes, then the signature."""
        return self.signed_bytes + self.signature

    @classmethod
    def parse(cls, packed: bytes) -> EnclaveStatement:
        """Raises FormatError. The signature is not looked at: see `verify`."""
        if len(packed) <= _STATEMENT.size:
            raise FormatError(f"an enclave's statement is cut short: {len(packed)} bytes")
        magic, enclave, measurement, data = _STATEMENT.unpack_from(packed)
        if magic != _MAGIC:
            raise FormatError("this is not an enclave's statement")
        return cls(enclave, measurement, data, packed[_STATEMENT.size :])

    def verify(self, public: bytes) -> bool:
        """Did this key (SubjectPublicKeyInfo, DER) sign it?"""
        try:
            key = load_der_public_key(public)
        except ValueError:
            return False
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        try:
            key.verify(self.signature, self.signed_bytes, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class EnclaveManifest(NamedTuple):
    """What attestation says of the service."""

    public_key: bytes
    """Of statements: SubjectPublicKeyInfo, DER."""
    mode: str

    def pack(self) -> bytes:
        """JSON."""
        return json.dumps({"mode": self.mode, "public_key": self.public_key.hex()}, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> EnclaveManifest:
        """Raises FormatError."""
        try:
            found = json.loads(data)
            return cls(bytes.fromhex(found["public_key"]), str(found["mode"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not VeilS-ENC's manifest: {error!s:.100}") from error


class EnclaveWord(NamedTuple):
    """An entry of VeilS-ENC in the protected log."""

    event: str
    """"finished", "refused", "says" (a line of the enclave's own), "gone"."""
    enclave: int
    words: str
    measurement: str = ""

    def pack(self) -> bytes:
        """JSON."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def parse(cls, data: bytes) -> EnclaveWord:
        """Raises FormatError."""
        try:
            found = json.loads(data)
            made = cls(**found)
        except (ValueError, TypeError) as error:
            raise FormatError(f"not a word of VeilS-ENC's: {error!s:.100}") from error
        if type(made.enclave) is not int or not all(isinstance(item, str) for item in (made.event, *made[2:])):
            raise FormatError("a word of VeilS-ENC's has an event, a number, and text")
        return made
