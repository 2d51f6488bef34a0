# SPDX-License-Identifier: GPL-2.0-or-later
"""The log's own key, made at launch and attested with its manifest: it signs heads."""

from __future__ import annotations

import dataclasses

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from veil.formats.log import Head

__all__ = ["HeadKey"]


class HeadKey:
    """P-256."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self.private = private

    @classmethod
    def generate(cls) -> HeadKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> bytes:
        """SubjectPublicKeyInfo (RFC 5280) as DER."""
        return self.private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, head: Head) -> Head:
        """The head with its signature."""
        return dataclasses.replace(head, signature=self.private.sign(head.signed_bytes, ec.ECDSA(hashes.SHA256())))

    def dump(self) -> str:
        """For a snapshot, which is secret."""
        return self.private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).hex()

    @classmethod
    def of(cls, dumped: str) -> HeadKey:
        """From `dump`."""
        private = serialization.load_der_private_key(bytes.fromhex(dumped), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        return cls(private)
