# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's own key: a CVM is launched with the fingerprints of its owners' keys, and lets them do more than look."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from veil.errors import describe
from veil.formats.knock import pack_proof
from veil.private_files import make_folder, write_private
from veil.remote.errors import RemoteError

__all__ = ["UserKey"]


@dataclass(frozen=True)
class UserKey:
    """An ECDSA P-256 key and a certificate around it, which says nothing more."""

    private_key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def generate(cls) -> UserKey:
        """A new key."""
        return cls._around(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path) -> UserKey:
        """The key in a file (PEM), made at the first call; raises RemoteError."""
        try:
            if not path.exists():
                key = ec.generate_private_key(ec.SECP256R1())
                pem = key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
                make_folder(path.parent)
                write_private(path, pem, durable=True)
            loaded = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise RemoteError(f"cannot use the user key {path}: {describe(error)}") from error
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise RemoteError(f"cannot use the user key {path}: it is not an elliptic curve key")
        return cls._around(loaded)

    @classmethod
    def _around(cls, key: ec.EllipticCurvePrivateKey) -> UserKey:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Veil user")])
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        builder = builder.not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
        return cls(key, builder.sign(key, hashes.SHA256()))

    @property
    def _public(self) -> bytes:
        return self.private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the public key (DER SubjectPublicKeyInfo): what a CVM is launched with."""
        return hashlib.sha256(self._public).digest()

    def answer(self, challenge: bytes) -> bytes:
        """What a host that challenges us is to see before it lets us in (`veil.formats.knock`); raises FormatError."""
        return pack_proof(self._public, challenge, lambda text: self.private_key.sign(text, ec.ECDSA(hashes.SHA256())))
