# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that the command line names."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from veil.errors import VeilError, describe

if TYPE_CHECKING:
    from veil.formats.launch_digest import LaunchLog
    from veil.guest.enclaves.image import EnclaveImage

__all__ = ["read_certificate_table", "read_certificates", "read_file", "read_image", "read_launch_log"]

_MAX_BYTES = 64 << 20
#: what an enclave begins with, and as much of trusted files
_MAX_IMAGE = 8 << 30


def read_file(name: str) -> bytes:
    """A file's contents, or stdin's for "-"; raises VeilError, for more than 64 MiB, too."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise VeilError(f"cannot read {name}: {describe(error)}") from error
    if len(data) > _MAX_BYTES:
        raise VeilError(f"{name} has more than {_MAX_BYTES >> 20} MiB, which nothing has that is read here")
    return data


def read_certificates(name: str) -> bytes:
    """A file that has certificates in it; raises VeilError naming it, for there may be several."""
    from veil.formats.errors import FormatError
    from veil.remote.attestation.certificates import load_certificates

    data = read_file(name)
    try:
        load_certificates(data)
    except FormatError as error:
        raise VeilError(f"{name}: {error}") from error
    return data


def read_certificate_table(name: str) -> bytes:
    """The same where a host's table is expected, whatever GUIDs are in it."""
    from veil.formats.certificate_table import parse_certificates
    from veil.formats.errors import FormatError
    from veil.remote.attestation.certificates import load_certificates

    data = read_file(name)
    try:
        parse_certificates(data)
    except FormatError as no_table:
        try:
            load_certificates(data)
        except FormatError as error:
            raise VeilError(f"{name}: {no_table}, and otherwise: {error}") from error
    return data


def read_launch_log(name: str) -> LaunchLog:
    """What `veil measure --log` wrote; raises VeilError."""
    from veil.formats.errors import FormatError
    from veil.formats.launch_digest import LaunchLog

    try:
        return LaunchLog.parse(read_file(name))
    except FormatError as error:
        raise VeilError(f"{name}: {error}; `veil measure --log` writes one") from error


def read_image(name: str) -> EnclaveImage:
    """An enclave's; raises VeilError for a file that cannot be read or that is no image."""
    from veil.guest.enclaves.image import EnclaveImage
    from veil.guest.named_files import read_named_file

    return EnclaveImage.parse(read_named_file(name, "the enclave's image", _MAX_IMAGE), name)
