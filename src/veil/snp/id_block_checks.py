# SPDX-License-Identifier: GPL-2.0-or-later
"""What SNP_LAUNCH_FINISH checks of an ID block (56860, section "SNP_LAUNCH_FINISH")."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from veil.snp.errors import LaunchError
from veil.snp.layouts.id_block import EcdsaPublicKey, EcdsaSignature, IdAuth, IdBlock

__all__ = ["LaunchIdentity", "check_id_block"]

_VERSION = 1
_P384 = 2
_ECDSA_P384_SHA384 = 1


@dataclass(frozen=True)
class LaunchIdentity:
    """What an ID block adds to the guest's reports; all zero without one."""

    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    guest_svn: int = 0
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    author_key_enabled: bool = False


def check_id_block(
    block: bytes, auth: bytes, *, measurement: bytes, policy: int, author_key_enabled: bool
) -> LaunchIdentity:
    """Raises LaunchError unless the block fits this launch and its keys signed it."""
    if len(block) != ctypes.sizeof(IdBlock) or len(auth) != ctypes.sizeof(IdAuth):
        raise LaunchError(f"an ID block has 96 bytes and its authentication 4096, not {len(block)} and {len(auth)}")
    claim, proof = IdBlock.from_buffer_copy(block), IdAuth.from_buffer_copy(auth)
    if claim.version != _VERSION:
        raise LaunchError(f"ID block of version {claim.version}, not {_VERSION}")
    if bytes(claim.launch_digest) != measurement:
        raise LaunchError("BAD_MEASUREMENT: the ID block is for an image with another launch digest")
    if claim.policy != policy:
        raise LaunchError(f"POLICY_FAILURE: the ID block wants policy {claim.policy:#x}, the launch has {policy:#x}")
    _verify("ID block", block, proof.id_block_signature, proof.id_key, proof.id_key_algorithm)
    if author_key_enabled:
        id_key = bytes(proof.id_key)
        _verify("ID key", id_key, proof.id_key_signature, proof.author_key, proof.author_key_algorithm)
    return LaunchIdentity(
        bytes(claim.family_id),
        bytes(claim.image_id),
        claim.guest_svn,
        hashlib.sha384(bytes(proof.id_key)).digest(),
        hashlib.sha384(bytes(proof.author_key)).digest() if author_key_enabled else bytes(48),
        author_key_enabled,
    )


def _verify(what: str, data: bytes, signature: EcdsaSignature, key: EcdsaPublicKey, algorithm: int) -> None:
    if algorithm != _ECDSA_P384_SHA384 or key.curve != _P384:
        raise LaunchError(f"the {what}'s key is not an ECDSA P-384 one")
    r, s = (int.from_bytes(bytes(part), "little") for part in (signature.r, signature.s))
    x, y = (int.from_bytes(bytes(part), "little") for part in (key.qx, key.qy))
    try:
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        public.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature) as error:
        raise LaunchError(f"BAD_SIGNATURE: the {what} is not signed by its key") from error
