# SPDX-License-Identifier: GPL-2.0-or-later
"""The knock: how a user shows the host, before TLS, that the launch names them, so as not to wait with strangers.

1. The user says `KNOCK`, which TLS cannot begin with.
2. The host answers with a challenge of `CHALLENGE_BYTES`: `KNOCK`, and random bytes for this connection only.
3. The user sends `pack_proof`: the public key, and a signature of challenge and nonce, sealed with the key's
   fingerprint. TLS follows.

To check it the host needs no more than what it launches with, the fingerprints. VeilMon believes nothing of this: it is
about whose turn it is. A proof is good for one connection, so one that was recorded is of no use. The seal keeps from
those who watch the network, and do not know the fingerprints, what TLS 1.3 keeps from them as well: whose key it is.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable

from veil.formats.errors import FormatError

__all__ = ["CHALLENGE_BYTES", "KNOCK", "LENGTH_BYTES", "MAX_PROOF", "Seal", "make_challenge", "pack_proof"]

KNOCK = b"VEILKNK1"
_RANDOM_BYTES = 32
CHALLENGE_BYTES = len(KNOCK) + _RANDOM_BYTES
#: Before a proof: its length, u16.
LENGTH_BYTES = 2
#: Bytes of a proof without its length: room for the largest elliptic curve key in use (P-521).
MAX_PROOF = 512
_NONCE_BYTES = 12
#: Before what is signed. A signature in TLS 1.3 begins with 64 spaces (RFC 8446, 4.4.3): neither passes for the other.
_SIGNED = b"Veil: the holder of this key knocks at a host\0"
_SEALED = b"Veil: a knock's seal"


def make_challenge() -> bytes:
    """A new one."""
    return KNOCK + os.urandom(_RANDOM_BYTES)


class Seal:
    """Seals and opens the proofs of one key, AES-256-GCM: who does not know its fingerprint can do neither."""

    def __init__(self, fingerprint: bytes) -> None:
        """`fingerprint`: SHA-256 of the public key (DER SubjectPublicKeyInfo)."""
        # Here, because most boots see no user.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._fingerprint = fingerprint
        self._cipher = AESGCM(hmac.digest(fingerprint, _SEALED, "sha256"))

    def close(self, nonce: bytes, challenge: bytes, public: bytes, signature: bytes) -> bytes:
        """What `open` opens."""
        text = len(public).to_bytes(LENGTH_BYTES, "little") + public + signature
        return nonce + self._cipher.encrypt(nonce, text, challenge)

    def open(self, challenge: bytes, proof: bytes) -> tuple[bytes, bytes, bytes] | None:
        """The public key, the bytes that were signed, the signature, which is not checked; None: not for this seal."""
        from cryptography.exceptions import InvalidTag

        nonce, sealed = proof[:_NONCE_BYTES], proof[_NONCE_BYTES:]
        try:
            text = self._cipher.decrypt(nonce, sealed, challenge)
        except (InvalidTag, ValueError):
            return None
        end = LENGTH_BYTES + int.from_bytes(text[:LENGTH_BYTES], "little")
        public, signature = text[LENGTH_BYTES:end], text[end:]
        # Anybody may know a fingerprint, and seal another key.
        if hashlib.sha256(public).digest() != self._fingerprint:
            return None
        return public, _SIGNED + challenge + nonce, signature


def pack_proof(public: bytes, challenge: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """The user's answer to a challenge, length and all. `public`: DER SubjectPublicKeyInfo; `sign` signs with its key.

    Raises FormatError for what is no challenge, or a key that is too large for a knock.
    """
    if len(challenge) != CHALLENGE_BYTES or not challenge.startswith(KNOCK):
        raise FormatError("the answer to a knock is no challenge")
    nonce = os.urandom(_NONCE_BYTES)
    seal = Seal(hashlib.sha256(public).digest())
    proof = seal.close(nonce, challenge, public, sign(_SIGNED + challenge + nonce))
    if len(proof) > MAX_PROOF:
        raise FormatError(f"a proof of {len(proof)} bytes, of at most {MAX_PROOF}")
    return len(proof).to_bytes(LENGTH_BYTES, "little") + proof
