# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom a verifier believes: AMD's root keys, and those of software machines that somebody added with intent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from veil.remote.attestation.certificates import common_name, load_certificates, public_bytes
from veil.remote.errors import RemoteError

__all__ = ["SOFTWARE", "TrustedRoots"]

#: SHA-256 of the DER SubjectPublicKeyInfo of each ARK, which signs the ASK (VCEK) and the ASVK (VLEK) alike. To check
#: one: curl https://kdsintf.amd.com/vcek/v1/Milan/cert_chain, the second certificate,
#: openssl x509 -pubkey -noout | openssl pkey -pubin -outform DER | sha256sum.
_AMD = {
    "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": "AMD Milan",
    "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": "AMD Genoa",
    "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08": "AMD Turin",
}
SOFTWARE = "software"


@dataclass(frozen=True)
class TrustedRoots:
    """Root keys by fingerprint, and what machines they vouch for."""

    _keys: dict[str, str] = field(default_factory=lambda: dict(_AMD))
    # Of roots that are known and not believed: what to tell somebody who may have meant them.
    _advice: dict[str, str] = field(default_factory=dict)

    @classmethod
    def amd(cls) -> TrustedRoots:
        """AMD's roots, pinned in the program: hardware only."""
        return cls()

    def with_software_root(self, certificate: bytes) -> TrustedRoots:
        """Believe also machines of this root, which are reported as `software` whatever they say of themselves.

        A software machine protects nobody from its operator. Raises RemoteError.
        """
        found = load_certificates(certificate)
        if len(found) != 1:
            raise RemoteError(f"{len(found)} certificates in what should be one root's")
        name = common_name(found[0].subject)
        fingerprint = hashlib.sha256(public_bytes(found[0])).hexdigest()
        if fingerprint in _AMD:
            raise RemoteError(f"{name} is AMD's root for hardware, not one of a software machine")
        return TrustedRoots({**self._keys, fingerprint: SOFTWARE}, self._advice)

    def with_advice(self, certificate: bytes, words: str) -> TrustedRoots:
        """If a chain ends in this root, the failed check adds `words`; it is still not trusted. Raises RemoteError."""
        found = {hashlib.sha256(public_bytes(item)).hexdigest(): words for item in load_certificates(certificate)}
        return TrustedRoots(self._keys, {**self._advice, **found})

    def advice(self, key: bytes) -> str | None:
        """What `with_advice` said of the root with this public key (DER)."""
        return self._advice.get(hashlib.sha256(key).hexdigest())

    def machine(self, key: bytes) -> str | None:
        """What the root with this public key (DER) vouches for; None if it is nobody's."""
        return self._keys.get(hashlib.sha256(key).hexdigest())
