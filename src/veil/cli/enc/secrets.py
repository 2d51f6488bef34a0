# SPDX-License-Identifier: GPL-2.0-or-later
"""Secrets for enclaves: whether an image asks for them, where they are read from, and how `veil run` sends them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from veil.cli.enc.runtime import warn_of_runtime
from veil.cli.files import read_file
from veil.cli.option_types import WrongValue
from veil.cli.output import tell
from veil.cli.own_cvm import own_client
from veil.errors import VeilError
from veil.formats.printable import printable

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.guest.enclaves.image import EnclaveImage

__all__ = ["check_name", "read_secret", "secrets_for", "send_secrets"]


def read_secret(name: str) -> bytes:
    """From a file, or with "-" from stdin. Raises VeilError."""
    from veil.formats.enclave_reports import LONGEST_SECRET

    secret = read_file(name)
    if len(secret) > LONGEST_SECRET:
        raise VeilError(f"{name}: a secret has {LONGEST_SECRET} bytes at most, not {len(secret)}")
    return secret


def check_name(image: EnclaveImage, file: str, name: str) -> None:
    """Raise VeilError if the enclave would never ask for a secret of this name."""
    names = _names(image)
    if name not in names:
        words = f"only for {', '.join(names)}" if names else "for none"
        raise VeilError(f"{file} does not ask for a secret {name!r}, {words} (files.secrets of its manifest)")


def secrets_for(image: EnclaveImage, file: str, given: Iterable[str]) -> dict[str, bytes]:
    """Of NAME=FILE each: what is to be sent, by name. Raises VeilError; says so if one that is asked for is missing."""
    found: dict[str, bytes] = {}
    for pair in given:
        name, separator, place = pair.partition("=")
        if not separator or not name or not place:
            raise WrongValue(f"--secret {pair}: write NAME=FILE")
        check_name(image, file, name)
        # Its stdin is the program's.
        found[name] = read_secret(f"./{place}" if place == "-" else place)
        if not found[name]:
            raise VeilError(f"--secret {name}: {place} is empty")
    if found:
        warn_of_runtime(image, file)
    missing = [name for name in _names(image) if name not in found]
    if missing:
        tell(f"veil: {file} waits when it wants a secret that was not sent: {', '.join(missing)} (--secret NAME=FILE)")
    return found


def send_secrets(vm: ConfidentialVM, image: EnclaveImage, secrets: Mapping[str, bytes]) -> None:
    """To a CVM of ours, which is attested first: its VeilS-ENC gives them to enclaves of this image alone.

    Raises VeilError, also if something of it does not hold.
    """
    from veil.formats.errors import FormatError
    from veil.remote.enc.enclaves import open_enclaves

    if not secrets:
        return
    expected = (vm.image or vm.build_image()).log()
    try:
        with own_client(vm, expected) as (client, trust):
            enclaves = open_enclaves(client, trust)
            for name, secret in secrets.items():
                enclaves.provision(image.measurement, name.encode(), secret)
    except FormatError as error:
        raise VeilError(f"the CVM's answers are unusable: {error}") from error


def _names(image: EnclaveImage) -> tuple[str, ...]:
    from veil.guest.enclaves.manifest import Manifest

    return tuple(map(printable, Manifest.parse(image.manifest, "the image's manifest").secrets))
