# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's end of the knock (`veil.formats.knock`): who need not wait with strangers.

Whatever strangers say costs little: one short answer for each connection, one look at one proof; a signature is
checked only of a key whose fingerprint the launch has, which takes knowing that key.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from veil.formats.knock import KNOCK, LENGTH_BYTES, MAX_PROOF, Seal, make_challenge

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Doorkeeper", "Knock"]


class Doorkeeper:
    """Knows the fingerprints of those whom the launch names."""

    def __init__(self, named: Iterable[bytes]) -> None:
        """`named`: SHA-256 of their public keys (DER SubjectPublicKeyInfo)."""
        self._seals = [Seal(fingerprint) for fingerprint in named]

    def hear(self) -> Knock:
        """A new connection."""
        return Knock(self)

    def is_named(self, challenge: bytes, proof: bytes) -> bool:
        """Does the proof come from somebody whom the launch names, as the answer to this challenge?"""
        for seal in self._seals:
            opened = seal.open(challenge, proof)
            if opened is not None:
                return _is_signed(*opened)
        return False


def _is_signed(public: bytes, signed: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _load(public)
    try:
        if key is not None:
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
            return True
    except InvalidSignature:
        pass
    return False


@functools.lru_cache(maxsize=32)
def _load(public: bytes) -> ec.EllipticCurvePublicKey | None:
    """The key, if it is one for a knock. Only keys come here whose fingerprints the launch has: they are few."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_der_public_key(public)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey) else None


class Knock:
    """What a connection says first: a knock, or something else, and then it is a stranger's."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper
        self._held = b""
        self._challenge: bytes | None = None
        #: nothing more to hear: TLS follows, or has begun
        self.over = False
        #: it was the knock of somebody whom the launch names
        self.named = False
        #: what was said, and was no knock: the beginning of what comes instead
        self.words = b""

    @property
    def wants(self) -> int:
        """How many bytes are to be heard next, at most: none that may be TLS's."""
        if self._challenge is None:
            whole = len(KNOCK)
        elif len(self._held) < LENGTH_BYTES:
            whole = LENGTH_BYTES
        else:
            whole = LENGTH_BYTES + self._length
        return whole - len(self._held)

    @property
    def _length(self) -> int:
        return int.from_bytes(self._held[:LENGTH_BYTES], "little")

    def heard(self, data: bytes) -> bytes:
        """They said this, `wants` bytes or fewer; returns what to answer."""
        self._held += data
        if self._challenge is None:
            if not KNOCK.startswith(self._held):
                self.over, self.words = True, self._held
            elif len(self._held) == len(KNOCK):
                self._held, self._challenge = b"", make_challenge()
                return self._challenge
        elif len(self._held) >= LENGTH_BYTES:
            if not 0 < self._length <= MAX_PROOF:
                self.over = True
            elif not self.wants:
                self.over = True
                self.named = self._doorkeeper.is_named(self._challenge, self._held[LENGTH_BYTES:])
        return b""
