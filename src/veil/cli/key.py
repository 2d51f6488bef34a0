# SPDX-License-Identifier: GPL-2.0-or-later
"""veil key"""

from __future__ import annotations

import click

from veil.cli.output import say

__all__ = ["key"]


@click.command()
def key() -> int:
    """Print the fingerprint of this installation's user key, for the `--reader` and `--owner` of a CVM's launcher.

    It is SHA-256 of the public key, in hexadecimal, and no secret.
    """
    from veil.installation import owner_fingerprint

    say(owner_fingerprint().hex())
    return 0
