# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that the command line names."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from veil.errors import VeilError, describe

__all__ = ["read_certificates", "read_file"]

_MAX_BYTES = 64 << 20


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
