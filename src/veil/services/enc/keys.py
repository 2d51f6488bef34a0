# SPDX-License-Identifier: GPL-2.0-or-later
"""What enclaves get beside memory: keys of their own, secrets that a remote user sent, and statements for others.

All of it goes by the measurement: an enclave with one other byte gets another key, and no secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from veil.formats.enclave_reports import LONGEST_SECRET, EnclaveStatement, Speaker
from veil.services.enc.errors import EnclaveError

if TYPE_CHECKING:
    from veil.services.enc.enclave import Enclave

__all__ = ["EnclaveKeys"]

_MAX_SECRETS = 256


class EnclaveKeys:
    """Root of the keys, secrets, and the key of statements."""

    def __init__(self, signer: ec.EllipticCurvePrivateKey) -> None:
        #: of the keys, the same in each launch of this image on this processor; None while it could not be had
        self.root: bytes | None = None
        self._signer = signer
        self._secrets: dict[tuple[bytes, bytes], bytes] = {}

    @classmethod
    def generate(cls) -> EnclaveKeys:
        """For one launch."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> bytes:
        """SubjectPublicKeyInfo of the key of statements, DER."""
        return self._signer.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def derive(self, measurement: bytes, label: bytes) -> bytes | None:
        """32 bytes: the same for the same measurement and label under one root. None without a root."""
        if self.root is None:
            return None
        mac = hmac.HMAC(self.root, hashes.SHA256())
        mac.update(b"enclave key\0" + measurement + label)
        return mac.finalize()

    def statement(self, speaker: Speaker, enclave: Enclave, data: bytes) -> bytes:
        """Signed: the enclave is there, and who asked for these 64 bytes to be said."""
        said = EnclaveStatement(speaker, enclave.number, enclave.measurement, data)
        return said._replace(signature=self._signer.sign(said.signed_bytes, ec.ECDSA(hashes.SHA256()))).pack()

    # Secrets

    def provision(self, measurement: bytes, name: bytes, secret: bytes) -> None:
        """Keep a secret for enclaves of this measurement; an empty one removes it. Raises EnclaveError."""
        if not secret:
            self._secrets.pop((measurement, name), None)
            return
        if len(secret) > LONGEST_SECRET:
            raise EnclaveError(f"a secret has {LONGEST_SECRET} bytes at most, not {len(secret)}")
        if len(self._secrets) >= _MAX_SECRETS and (measurement, name) not in self._secrets:
            raise EnclaveError(f"there are {_MAX_SECRETS} secrets already: remove one")
        self._secrets[measurement, name] = secret

    def has_secrets(self, measurement: bytes) -> bool:
        """Was anything provisioned for it?"""
        return any(owner == measurement for owner, _ in self._secrets)

    def secret(self, measurement: bytes, name: bytes) -> bytes | None:
        """What was provisioned under this name."""
        return self._secrets.get((measurement, name))

    # Snapshots, which are secret

    def dump(self) -> dict[str, Any]:
        private = self._signer.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        secrets = [[part.hex() for part in (*key, secret)] for key, secret in self._secrets.items()]
        return {"root": self.root.hex() if self.root is not None else None, "signer": private.hex(), "secrets": secrets}

    @classmethod
    def load(cls, state: dict[str, Any]) -> EnclaveKeys:
        """Take back what `dump` gave."""
        signer = serialization.load_der_private_key(bytes.fromhex(state["signer"]), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        made = cls(signer)
        made.root = bytes.fromhex(state["root"]) if state["root"] is not None else None
        for measurement, name, secret in state["secrets"]:
            made._secrets[bytes.fromhex(measurement), bytes.fromhex(name)] = bytes.fromhex(secret)
        return made
