# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to this installation and is not a cache: the software machine's chip, the user's own key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from veil.errors import VeilError, describe
from veil.private_files import own_folder, write_private
from veil.snp import MODEL_TCB, SnpError

if TYPE_CHECKING:
    from veil.remote import UserKey
    from veil.snp.endorsement import Endorsement

__all__ = ["data_directory", "endorsement", "known_software_root", "owner_fingerprint", "software_root", "user_key"]


_FINGERPRINT_BYTES = 32


def data_directory() -> Path:
    """`$XDG_DATA_HOME/veil` (XDG Base Directory Specification); may not exist yet."""
    base = os.environ.get("XDG_DATA_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "veil"
    try:
        return Path.home() / ".local" / "share" / "veil"
    except RuntimeError as error:
        raise VeilError("no place for your keys: neither XDG_DATA_HOME nor a home directory is set") from error


def _own_directory() -> Path:
    """The same, ours and closed to others; raises VeilError."""
    directory = data_directory()
    try:
        own_folder(directory)
    except OSError as error:
        raise VeilError(f"cannot keep keys in {directory}: {describe(error)} (set XDG_DATA_HOME)") from error
    return directory


def endorsement() -> Endorsement:
    """The chip of this installation's machines, made at the first call (a second or two)."""
    from veil.snp.endorsement import Endorsement

    try:
        return Endorsement.load(_own_directory() / "machine", MODEL_TCB)
    except SnpError as error:
        raise VeilError(str(error)) from error


def software_root() -> bytes:
    """The root certificate (DER) of this installation's machines, for anyone who wants to trust them."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return endorsement().ark.public_bytes(Encoding.DER)


def known_software_root() -> Path | None:
    """Where the root certificate (PEM) of this installation's machines is; None if none was made yet."""
    place = data_directory() / "machine" / "ark.pem"
    return place if place.exists() else None


def user_key() -> UserKey:
    """The key of this installation's user, made at the first call."""
    from veil.remote import UserKey

    return UserKey.load(_own_directory() / "user.key")


def owner_fingerprint() -> bytes:
    """SHA-256 of the user's public key, which CVMs are launched with: 32 bytes.

    Kept beside the key, because reading a key takes longer than everything else that most commands do.
    """
    directory = _own_directory()
    path = directory / "user.fingerprint"
    try:
        fingerprint = bytes.fromhex(path.read_text())
        if len(fingerprint) == _FINGERPRINT_BYTES and (directory / "user.key").exists():
            return fingerprint
    except (OSError, ValueError):
        pass
    fingerprint = user_key().fingerprint
    try:
        write_private(path, fingerprint.hex() + "\n")
    except OSError as error:
        raise VeilError(f"cannot write {path}: {describe(error)}") from error
    return fingerprint
