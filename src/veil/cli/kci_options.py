# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command line says of the code that a CVM's kernel may run: VeilS-KCI's settings."""

from __future__ import annotations

import click

from veil.cli.files import read_certificates
from veil.errors import VeilError
from veil.formats.kci_settings import BUILD_KEYS, HALT, NO_KEYS, OFF, ON, KciSettings, certificate_text

__all__ = ["CODE_OPTIONS", "code_policy"]

#: Of all commands that make or measure an image: whether the kernel is locked down belongs to what runs.
CODE_OPTIONS = (
    click.option(
        "--kci",
        type=click.Choice([OFF, ON, HALT]),
        envvar="VEIL_KCI",
        help="Kernel code integrity: with on, the kernel runs no supervisor code but its own and verified modules; "
        f"what is refused stands in the protected log. With halt the first violation ends the kernel (a "
        f"refused module does not count as one).  [default: $VEIL_KCI, or {KciSettings.mode}]",
    ),
    click.option(
        "--kci-keys",
        type=click.Choice([BUILD_KEYS, NO_KEYS]),
        help="May the keys that are built into the kernel (Debian's, for Debian's modules) sign modules?  "
        f"[default: {KciSettings.keys}]",
    ),
    click.option(
        "--kci-certificate",
        multiple=True,
        metavar="FILE",
        help="Another key that may: its X.509 certificate, in PEM or DER.",
    ),
    click.option(
        "--kci-hash",
        multiple=True,
        metavar="HEX",
        help="SHA-256 of a module that needs no signature: of the file, not compressed (xz -dc x.ko.xz | sha256sum).",
    ),
    click.option(
        "--kci-writable",
        multiple=True,
        metavar="SYMBOL",
        help="An exception: read-only data that the kernel may write, by its symbol; of a module's, MODULE/SYMBOL.",
    ),
)


def code_policy(
    mode: str | None,
    keys: str | None,
    certificates: tuple[str, ...],
    hashes: tuple[str, ...],
    writable: tuple[str, ...] = (),
) -> dict[str, str | None]:
    """The options' values as the text of settings, None for those that nobody gave; raises VeilError."""
    if (mode or KciSettings.mode) == OFF and any((keys, certificates, hashes, writable)):
        # A wish to be protected must not come to nothing without a word.
        raise VeilError("which code may run is only asked with --kci on or --kci halt")
    lists = {"certificates": _certificates(certificates), "hashes": hashes, "writable": writable}
    return {"mode": mode, "keys": keys, **{name: ":".join(items) or None for name, items in lists.items()}}


def _certificates(names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    from cryptography.hazmat.primitives.serialization import Encoding

    from veil.remote.attestation.certificates import load_certificates

    return [
        certificate_text(found.public_bytes(Encoding.DER))
        for name in names
        for found in load_certificates(read_certificates(name))
    ]
