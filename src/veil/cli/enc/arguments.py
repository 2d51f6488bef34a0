# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments for an enclave: whether it takes them, and whether they fit, before a CVM is started for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from veil.cli.output import tell
from veil.errors import VeilError
from veil.formats.enclave_pages import MOST_STRINGS, MOST_TEXT
from veil.formats.sizes import format_size

if TYPE_CHECKING:
    from veil.guest.enclaves.image import EnclaveImage

__all__ = ["check_arguments"]


def check_arguments(image: EnclaveImage, file: str, arguments: Sequence[str]) -> None:
    """Raise VeilError for more than the enclave could take; say so if it takes none. Variables are the guest's."""
    from veil.guest.enclaves.manifest import Manifest

    manifest = Manifest.parse(image.manifest, "the image's manifest")
    if arguments and not manifest.arguments_outside:
        tell(f"veil: {file} takes no arguments from outside (arguments.outside of its manifest): it will not see these")
        return
    count = max(len(manifest.arguments), 1) + len(arguments)
    if count > MOST_STRINGS:
        raise _too_many(file, f"{count} arguments, and {MOST_STRINGS} at most fit")
    size = sum(len(os.fsencode(argument)) + 1 for argument in arguments)
    if size > MOST_TEXT:
        raise _too_many(file, f"{size} bytes, and {format_size(MOST_TEXT)} at most fit, with the variables")


def _too_many(file: str, words: str) -> VeilError:
    return VeilError(f"{file}: {os.strerror(errno.E2BIG)}: {words}")
