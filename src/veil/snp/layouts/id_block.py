# SPDX-License-Identifier: GPL-2.0-or-later
"""ID block and ID authentication information of a launch (56860, tables "ID_BLOCK" and "ID_AUTH")."""

from __future__ import annotations

import ctypes

from veil.formats.offsets import check_offsets

__all__ = ["EcdsaPublicKey", "EcdsaSignature", "IdAuth", "IdBlock"]

_U8, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64


class IdBlock(ctypes.LittleEndianStructure):
    """0x60 bytes: what the guest's owner says the launch is to be."""

    _pack_ = 1
    _fields_ = [
        ("launch_digest", _U8 * 48),
        ("family_id", _U8 * 16),
        ("image_id", _U8 * 16),
        ("version", _U32),
        ("guest_svn", _U32),
        ("policy", _U64),
    ]

    launch_digest: ctypes.Array[ctypes.c_uint8]
    family_id: ctypes.Array[ctypes.c_uint8]
    image_id: ctypes.Array[ctypes.c_uint8]
    version: int
    guest_svn: int
    policy: int


class EcdsaPublicKey(ctypes.LittleEndianStructure):
    """0x404 bytes; curve 2 is P-384, coordinates are little-endian. Its SHA-384 is the key's digest in reports."""

    _pack_ = 1
    _fields_ = [("curve", _U32), ("qx", _U8 * 72), ("qy", _U8 * 72), ("reserved_094", _U8 * 880)]

    curve: int
    qx: ctypes.Array[ctypes.c_uint8]
    qy: ctypes.Array[ctypes.c_uint8]


class EcdsaSignature(ctypes.LittleEndianStructure):
    """0x200 bytes; R and S are little-endian."""

    _pack_ = 1
    _fields_ = [("r", _U8 * 72), ("s", _U8 * 72), ("reserved_090", _U8 * 368)]

    r: ctypes.Array[ctypes.c_uint8]
    s: ctypes.Array[ctypes.c_uint8]


class IdAuth(ctypes.LittleEndianStructure):
    """One page: the ID key's signature over the ID block, and the author key's over the ID key."""

    _pack_ = 1
    _fields_ = [
        ("id_key_algorithm", _U32),
        ("author_key_algorithm", _U32),
        ("reserved_008", _U8 * 56),
        ("id_block_signature", EcdsaSignature),
        ("id_key", EcdsaPublicKey),
        ("reserved_644", _U8 * 60),
        ("id_key_signature", EcdsaSignature),
        ("author_key", EcdsaPublicKey),
        ("reserved_c84", _U8 * 892),
    ]

    id_key_algorithm: int
    author_key_algorithm: int
    id_block_signature: EcdsaSignature
    id_key: EcdsaPublicKey
    id_key_signature: EcdsaSignature
    author_key: EcdsaPublicKey


check_offsets(IdBlock, 0x60, {"family_id": 0x30, "image_id": 0x40, "version": 0x50, "guest_svn": 0x54, "policy": 0x58})
check_offsets(EcdsaPublicKey, 0x404, {"qx": 4, "qy": 0x4C})
check_offsets(EcdsaSignature, 0x200, {"s": 0x48})
check_offsets(
    IdAuth, 0x1000, {"id_block_signature": 0x40, "id_key": 0x240, "id_key_signature": 0x680, "author_key": 0x880}
)
